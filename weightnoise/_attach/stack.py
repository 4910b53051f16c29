"""The parametrization list of a noisy tensor, whose original stays where it was."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from weightnoise._noise.weight_noise import WeightNoise
from weightnoise._torch.dtensors import is_distributing
from weightnoise._torch.forwards import reads_weight

if TYPE_CHECKING:
    from typing_extensions import Self  # In typing from Python 3.11 on.


class Stacks(nn.ModuleDict):
    """The parametrization lists of a noisy module, as torch keeps them."""

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """As for any module; none for `distribute_module`, which takes each for a layer with a weight to cut."""
        if torch.compiler.is_compiling() or not is_distributing():
            yield from super().named_modules(*args, **kwargs)

    def _get_name(self) -> str:
        return "ModuleDict"


class InPlaceList(parametrize.ParametrizationList):
    """A parametrization list whose original stays a Parameter of the owner."""

    tensor_name: str
    owner: weakref.ref[nn.Module]  # Weak: a cycle would keep a model's memory until the next collection.
    only_noise: WeightNoise | None  # The noise, while nothing is stacked on it.

    @property
    def original(self) -> Tensor | None:  # type: ignore[override]
        """The clean Parameter, wherever it was replaced or moved to; or the tensor that stands in its place."""
        owner = self.owner()
        if owner is None:
            return None
        held = owner.__dict__
        return held[self.tensor_name] if self.tensor_name in held else owner._parameters[self.tensor_name]

    @reads_weight
    def forward(self) -> Tensor | None:  # type: ignore[override]
        """The noisy weight."""
        return self.read(self.original)

    def read(self, weight: Tensor | None) -> Tensor | None:
        """The noisy weight for a clean one."""
        only_noise = self.only_noise
        if only_noise is not None:
            # Past Module.__call__ and the loop: a read has to cost next to nothing.
            if weight is None or only_noise.control.off:
                return weight
            return only_noise.forward(weight)
        if weight is not None:
            part: Any
            for part in self._modules.values():
                weight = part(weight)
        return weight

    def append(self, module: nn.Module) -> Self:
        """Stack another parametrization on the noise; torch calls this on registration."""
        if self.only_noise is not None and self.only_noise.estimator != "shared":
            raise RuntimeError(
                f"{type(module).__name__} cannot come after noise with estimator={self.only_noise.estimator!r}, "
                "which goes on the output of the layer: call weightnoise.remove_weight_noise(model), register it, "
                "and add the noise again."
            )
        if hasattr(module, "right_inverse"):
            raise RuntimeError(
                f"{type(module).__name__} sets itself up from the clean weight, so it has to come before the "
                "noise: call weightnoise.remove_weight_noise(model), register it, and add the noise again."
            )
        super().append(module)
        if self.only_noise is not None:
            self.only_noise.alone = False
            self.only_noise.control.rest = []
        self.only_noise = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "owner"}
