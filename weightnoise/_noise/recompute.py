"""Noisy weights that the backward makes again, in place of keeping them from the forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from weightnoise._torch.autograd import autocast_of, storage_of, under_autocast
from weightnoise._torch.modes import can_save_by_hooks, in_transform, is_fake, saved_tensors_hooks_around

# A tensor that a noisy weight is made from, with what to call it in an error, after the name of the parameter.
Source: TypeAlias = tuple[str, Tensor]


def can_recompute() -> bool:
    """Whether recipes can stand for tensors, here and now: `torch.func` and some contexts allow no hooks."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and can_save_by_hooks()
        and not in_transform()
    )


def tensors_in(value: object) -> Iterable[Tensor]:
    """The tensors in a law or in a draw."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in(list(vars(value).values()))


class _Stamp:
    """What a tensor was at one time.

    Attributes:
        then: an alias. It keeps the memory, which would else be given to others, and counts in-place changes with
            the tensor.
        version: their number.
    """

    __slots__ = ("then", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.then = tensor.detach()
        self.version = _version(tensor)

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor has the memory that it had, and autograd has seen no write to it."""
        then = self.then
        return (
            _version(tensor) == self.version == _version(then)
            and tensor.dtype == then.dtype
            and (tensor.is_set_to(then) if _has_numbers(tensor) else storage_of(tensor) == storage_of(then))
        )


class Recipe:
    """How to make one noisy weight of one forward again.

    It checks nothing until it is told of what, by `stamp`.

    Attributes:
        name: of the parameter, for errors.
        weight: the clean weight.
        sources: all tensors that the noisy weight is made from, this one included.
        uses: how many saved tensors are views of the noisy weight.
        asked: how many of them the running backward has asked for.
        made: the noisy weight, until the last of them has it.
    """

    __slots__ = (
        "_autocast",
        "_make",
        "_stamps",
        "asked",
        "made",
        "name",
        "sources",
        "uses",
        "weight",
    )

    def __init__(
        self, name: str, weight: Tensor, make: Callable[[Tensor], Tensor], sources: Callable[[], Iterable[Source]]
    ) -> None:
        self.name = name
        self.weight = weight
        self.sources = sources
        self.uses = 0
        self.asked = 0
        self.made: Tensor | None = None
        self._make = make
        self._autocast = autocast_of(weight)
        self._stamps: list[_Stamp] = []

    def stamp(self) -> list[_Stamp]:
        """From now on, the sources must stay as they are."""
        self._stamps = [_Stamp(tensor) for _, tensor in self.sources()]
        return self._stamps

    def make(self, weight: Tensor) -> Tensor:
        """The noisy weight; an error where it would be another one than in the forward."""
        if self._stamps:
            for stamp, (what, tensor) in zip(self._stamps, self.sources(), strict=False):
                if not stamp.holds(tensor):
                    raise self._changed(what)
        return self._make(weight)

    def again(self) -> Tensor:
        """The noisy weight, for one more of the saved tensors."""
        made = self.made  # Once: another thread may be about to put it away.
        if made is None:
            with torch.no_grad(), under_autocast(self._autocast):
                made = self.made = self.make(self.weight)
        self.asked += 1
        if self.asked >= self.uses:
            self.asked, self.made = 0, None
        return made

    def _changed(self, what: str) -> RuntimeError:
        return RuntimeError(
            f"Parameter '{self.name}'{what} has been changed in place since the forward, so that its noisy "
            "weight cannot be made again. Change it after the backward, or use memory='keep'."
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
        self.version = _version(tensor)

    def unpack(self) -> Tensor:
        tensor = self.tensor
        if _version(tensor) != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{tensor.type()} {list(tensor.shape)}] is at version {_version(tensor)}; expected version "
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
    """What was drawn in a running forward, and the recipes of its noisy weights.

    Attributes:
        recipes: by the storage of the noisy weight, with what that was when it was made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recipes: dict[int, tuple[Recipe, _Stamp]] = {}

    def add(self, recipe: Recipe, noisy: Tensor) -> None:
        """From now on, save the recipe in place of the noisy weight."""
        stamps = recipe.stamp()
        if not _is_plain(noisy):
            return
        storage = storage_of(noisy)
        for stamp in stamps:
            if storage == storage_of(stamp.then):  # A law may return the weight itself, or what stays anyway.
                return
        self.recipes[storage] = recipe, _Stamp(noisy)

    def close(self) -> None:
        """Let go of the noisy weights: the graph keeps the hooks, and they this."""
        self.recipes.clear()


def recomputing(recipes: Mapping[int, tuple[Recipe, _Stamp]]) -> saved_tensors_hooks:
    """A context in which autograd saves recipes in place of noisy weights and of their views."""
    # Hooks do not nest: those of a checkpoint around this are asked for all other tensors.
    around = saved_tensors_hooks_around()

    def pack(tensor: Tensor) -> _View | _Same | _Other:
        # Others have no storage, or more than that.
        found = recipes.get(storage_of(tensor)) if _is_strided(tensor) else None
        if found is not None and _shows(tensor, found[1]):
            return _View(found[0], tensor)
        return _Same(tensor) if around is None else _Other(around[0](tensor), around[1])

    def unpack(packed: _View | _Same | _Other) -> Tensor:
        return packed.unpack()

    return saved_tensors_hooks(pack, unpack)


def _shows(tensor: Tensor, stamp: _Stamp) -> bool:
    """Whether a tensor in the memory of a noisy weight shows its numbers as they were made."""
    return (
        tensor.dtype == stamp.then.dtype
        and _version(tensor) == stamp.version
        and not (tensor.is_conj() or tensor.is_neg())
    )


def _is_strided(tensor: Tensor) -> bool:
    return (type(tensor) is Tensor or is_fake(tensor)) and tensor.layout is torch.strided


def _is_plain(tensor: Tensor) -> bool:
    return _is_strided(tensor) and not (tensor.is_conj() or tensor.is_neg())


def _has_numbers(tensor: Tensor) -> bool:
    return not (tensor.is_meta or is_fake(tensor))


def _version(tensor: Tensor) -> int:
    # Inference tensors count no versions.
    return 0 if tensor.is_inference() else tensor._version
