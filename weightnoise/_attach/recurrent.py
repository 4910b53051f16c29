"""Overrides for recurrent layers, which keep a list of their weights beside the Parameters.

Left alone, that list would hold noisy weights from one forward to the next: memory, tensors that
`copy.deepcopy` refuses, and weights that one thread makes and another one uses. So a forward with
noise has a list of its own, and the layer's list stays what it is without noise.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn


def recurrent_overrides(
    base: type[nn.RNNBase], clean_reads: Callable[[nn.Module], AbstractContextManager[None]]
) -> dict[str, Any]:
    """The attributes and methods that keep the noisy weights of a recurrent layer to its forward."""

    def init_flat_weights(self: nn.RNNBase) -> None:
        # torch calls this in a forward, and in conversions and copies, which must not draw.
        if _running(self) is not None:
            return base._init_flat_weights(self)
        with clean_reads(self):
            return base._init_flat_weights(self)

    names = ("_flat_weights", "_flat_weight_refs")
    return {"_init_flat_weights": init_flat_weights, **{name: _of_the_forward(name) for name in names}}


def _of_the_forward(name: str) -> property:
    """An attribute that a running forward has for itself once it has set it."""

    def read(self: nn.Module) -> Any:
        running = _running(self) or {}
        if name in running:
            return running[name]
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(name) from None

    def write(self: nn.Module, value: Any) -> None:
        running = _running(self)
        (self.__dict__ if running is None else running)[name] = value

    def delete(self: nn.Module) -> None:
        self.__dict__.pop(name, None)

    return property(read, write, delete)


def _running(layer: nn.Module) -> dict[str, Any] | None:
    holder: Any = layer.__dict__["_modules"].get("parametrizations")
    running = [] if holder is None else holder.module_noise.frames.running
    return running[-1] if running else None
