"""What recurrent layers need: they keep a list of their weights beside the Parameters.

Left alone, that list would hold noisy weights from one forward to the next: memory, and tensors
that `copy.deepcopy` refuses. So outside of a forward it holds what it holds without noise.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn


def recurrent_overrides(
    base: type[nn.RNNBase],
    forward: Callable[..., Any],
    quiet: Callable[[nn.Module], AbstractContextManager[None]],
) -> dict[str, Any]:
    """The methods that keep the flat weights of a noisy recurrent layer clean at rest."""

    @functools.wraps(base.forward)
    def forward_and_rest(self: nn.RNNBase, *args: Any, **kwargs: Any) -> Any:
        try:
            return forward(self, *args, **kwargs)
        finally:
            rest(self)

    def init_flat_weights(self: nn.RNNBase) -> None:
        if self._modules["parametrizations"].attachment.scope.running:  # type: ignore[union-attr]
            return base._init_flat_weights(self)
        with quiet(self):
            return base._init_flat_weights(self)

    def rest(self: nn.RNNBase) -> None:
        names = self._flat_weights_names
        if all(flat is self._parameters.get(name) for flat, name in zip(self._flat_weights, names, strict=True)):
            return
        with quiet(self), torch.no_grad():
            flat = [getattr(self, name, None) for name in names]
        self._flat_weights = flat
        self._flat_weight_refs = [None if weight is None else weakref.ref(weight) for weight in flat]

    return {"forward": forward_and_rest, "_init_flat_weights": init_flat_weights}
