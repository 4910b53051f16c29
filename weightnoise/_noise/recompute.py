"""Noisy weights that the backward makes again, in place of keeping them from the forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from weightnoise._torch.autograd import storage_of
from weightnoise._torch.modes import saved_tensors_hooks_around


@dataclass(eq=False)
class Recipe:
    """How to make one noisy weight of one forward again.

    Attributes:
        make: does it, from the clean weight.
        weight: the clean weight.
        version: its count of in-place changes.
        name: what to call it in an error.
        uses: how many saved tensors are views of the noisy weight.
        asked: how many of them the running backward has asked for.
        made: the noisy weight, until the last of them has it.
    """

    make: Callable[[Tensor], Tensor]
    weight: Tensor
    version: int
    name: str
    uses: int = 0
    asked: int = 0
    made: Tensor | None = None

    def again(self) -> Tensor:
        """The noisy weight."""
        if self.made is None:
            if not self.weight.is_inference() and self.weight._version != self.version:
                raise RuntimeError(
                    f"Parameter '{self.name}' has been changed in place since the forward, so that its noisy "
                    "weight cannot be made again. Change it after the backward, or use memory='keep'."
                )
            with torch.no_grad():
                self.made = self.make(self.weight)
        made = self.made
        self.asked += 1
        if self.asked == self.uses:
            self.asked, self.made = 0, None
        return made


@dataclass(frozen=True, eq=False)
class _View:
    """A saved tensor that is a view of a noisy weight."""

    recipe: Recipe
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def again(self) -> Tensor:
        return self.recipe.again().as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True, eq=False)
class _Other:
    """Any other saved tensor, as the hooks around these have packed it."""

    packed: Any
    unpack: Callable[[Any], Tensor]


class Recomputed(dict[str, Any]):
    """What was drawn in a running forward, and the recipes of its noisy weights.

    Attributes:
        recipes: by the storage of the noisy weight, with the noisy weight, which keeps it alive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recipes: dict[int, tuple[Recipe, Tensor]] = {}

    def add(self, recipe: Recipe, noisy: Tensor) -> None:
        """From now on, save the recipe in place of the noisy weight."""
        storage = storage_of(noisy)
        if storage != storage_of(recipe.weight):  # A law may return the weight itself.
            self.recipes[storage] = recipe, noisy


def recomputing(recipes: Mapping[int, tuple[Recipe, Tensor]]) -> saved_tensors_hooks:
    """A context in which autograd saves recipes in place of noisy weights and of their views."""
    # Hooks do not nest: those of a checkpoint around this are asked for all other tensors.
    around = saved_tensors_hooks_around()

    def pack(tensor: Tensor) -> Any:
        found = recipes.get(storage_of(tensor))
        if found is not None:
            recipe, _ = found
            recipe.uses += 1
            return _View(recipe, tensor.shape, tensor.stride(), int(tensor.storage_offset()))
        return tensor if around is None else _Other(around[0](tensor), around[1])

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, _View):
            return packed.again()
        if isinstance(packed, _Other):
            return packed.unpack(packed.packed)
        plain: Tensor = packed
        return plain

    return saved_tensors_hooks(pack, unpack)
