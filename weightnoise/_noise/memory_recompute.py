"""For ``memory="recompute"``: noisy weights that the backward makes again, and that no forward keeps.

What the recomputation of an activation checkpoint sees is in `checkpoints`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightnoise._noise.recipe import Recipe, Stamp, version_of
from weightnoise._torch.autograd import can_be_made_again, storage_of
from weightnoise._torch.modes import (
    can_save_by_hooks,
    hooks_of_others,
    in_transform,
    is_strided,
    saved_tensors_hooks_around,
)

Hooks: TypeAlias = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]


def can_recompute() -> bool:
    """Whether recipes can stand for tensors, here and now: `torch.func` and some contexts allow no hooks."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and can_save_by_hooks()
        and not in_transform()
    )


class _View:
    """A saved tensor that is a view of a noisy weight."""

    __slots__ = ("offset", "recipe", "size", "stride")

    def __init__(self, recipe: Recipe, tensor: Tensor) -> None:
        recipe.uses += 1
        self.recipe = recipe
        self.size, self.stride, self.offset = tensor.shape, tensor.stride(), int(tensor.storage_offset())

    def unpack(self) -> Tensor:
        return self.recipe.again().as_strided(self.size, self.stride, self.offset)


class _Same:
    """Any other saved tensor. Under hooks, autograd leaves it to them to see that it has not changed."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        # A result that its own node saves would keep the node, and the node it, for ever.
        self.tensor = tensor if tensor.grad_fn is None else tensor.detach()
        self.version = version_of(tensor)

    def unpack(self) -> Tensor:
        tensor = self.tensor
        if version_of(tensor) != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{tensor.type()} {list(tensor.shape)}] is at version {version_of(tensor)}; expected version "
                f"{self.version} instead."
            )
        return tensor


class _Other:
    """Any other saved tensor, as the hooks around these have packed it."""

    __slots__ = ("_unpack", "packed")

    def __init__(self, packed: Any, unpack: Callable[[Any], Tensor]) -> None:
        self.packed = packed
        self._unpack = unpack

    def unpack(self) -> Tensor:
        return self._unpack(self.packed)


class Recomputed(dict[str, Any]):
    """The draws of a running forward, and the recipes of its noisy weights.

    Attributes:
        recipes: by the storage of the noisy weight, with what that was when it was made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recipes: dict[int, tuple[Recipe, Stamp]] = {}
        self.hooks = hooks_for(self.recipes)

    def applies_to(self, weight: Tensor) -> bool:
        """Whether autograd asks these hooks, not those of a checkpoint inside, and a recipe can be followed."""
        top = saved_tensors_hooks_around()
        asked = top is None or top[0] is self.hooks[0]  # torch 2.6 does not tell.
        return asked and can_be_made_again(weight)

    def add(self, recipe: Recipe, noisy: Tensor) -> None:
        """From now on, save the recipe in place of the noisy weight."""
        stamps = recipe.begin(noisy)
        if not is_strided(noisy) or noisy.is_conj() or noisy.is_neg():
            return
        storage = storage_of(noisy)
        for stamp in stamps:
            if storage == storage_of(stamp.then):  # A law may return the weight itself, or what stays anyway.
                return
        self.recipes[storage] = recipe, Stamp(noisy)

    def close(self) -> None:
        """Go by what the noisy weights are now, at the end of the forward: that is what autograd would keep."""
        for recipe, stamp in self.recipes.values():
            recipe.end(stamp.then)
        self.recipes.clear()  # The graph keeps the hooks, and they this.


def hooks_for(recipes: Mapping[int, tuple[Recipe, Stamp]]) -> Hooks:
    """Hooks by which autograd saves recipes in place of noisy weights and of their views."""
    # Hooks do not nest: those of a checkpoint around this are asked for all other tensors.
    around = saved_tensors_hooks_around()

    def pack(tensor: Tensor) -> _View | _Same | _Other:
        # Others have no storage, or more than that.
        found = recipes.get(storage_of(tensor)) if is_strided(tensor) else None
        if found is not None and _shows(tensor, found[1]):
            return _View(found[0], tensor)
        return _Same(tensor) if around is None else _Other(around[0](tensor), around[1])

    def unpack(packed: _View | _Same | _Other) -> Tensor:
        return packed.unpack()

    # So that a read of a weight knows that these are no checkpoint, nor in one.
    pack.outermost = not hooks_of_others()  # type: ignore[attr-defined]
    return pack, unpack


def _shows(tensor: Tensor, stamp: Stamp) -> bool:
    """Whether a tensor in the memory of a noisy weight shows its numbers as they were made."""
    return (
        tensor.dtype == stamp.then.dtype
        and version_of(tensor) == stamp.version
        and not (tensor.is_conj() or tensor.is_neg())
    )
