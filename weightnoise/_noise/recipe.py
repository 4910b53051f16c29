"""How to make a noisy weight again, and how to know that it is the one that it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from weightnoise._random.marks import marks_of
from weightnoise._torch.autograd import autocast_of, storage_of, under_autocast
from weightnoise._torch.modes import has_numbers, is_captured

# A tensor that a noisy weight is made from, with what to call it in an error, after the name of the parameter.
Source: TypeAlias = tuple[str, Tensor]


class Stamp:
    """The state of a tensor at one time.

    Attributes:
        then: an alias. It keeps the memory, which would else be given to others, and counts in-place changes with
            the tensor.
        version: their number.
    """

    __slots__ = ("then", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.then = tensor.detach()
        self.version = version_of(tensor)

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor has the memory that it had, and autograd has seen no write to it."""
        then = self.then
        return (
            version_of(tensor) == self.version == version_of(then)
            and tensor.dtype == then.dtype
            and (tensor.is_set_to(then) if has_numbers(tensor) else storage_of(tensor) == storage_of(then))
        )


class Recipe:
    """How to make one noisy weight of one forward again.

    It checks nothing until it is told what came out, when it was made and at the end of the forward.

    Attributes:
        checkpointed: whether the backward makes it again for the law's own gradient too.
        uses: how many saved tensors are views of the noisy weight.
        asked: how many of them the running backward has asked for.
        made: the noisy weight, until the last of them has it.
    """

    __slots__ = (
        "_at_first",
        "_at_last",
        "_autocast",
        "_make",
        "_name",
        "_sources",
        "_stamps",
        "_weight",
        "asked",
        "checkpointed",
        "made",
        "uses",
    )

    def __init__(
        self, name: str, weight: Tensor, make: Callable[[Tensor], Tensor], sources: Callable[[], list[Source]]
    ) -> None:
        """Check nothing yet.

        Args:
            name: of the parameter, for errors.
            weight: the clean weight.
            make: makes the noisy weight from it.
            sources: all tensors that it is made from, the clean weight included.
        """
        self._name = name
        self._weight = weight
        self._make = make
        self._sources = sources
        self._autocast = autocast_of(weight)
        self._stamps: list[Stamp] = []
        self._at_first: Tensor | None = None
        self._at_last: Tensor | None = None
        self.checkpointed = False
        self.uses = 0
        self.asked = 0
        self.made: Tensor | None = None

    def begin(self, noisy: Tensor) -> list[Stamp]:
        """From now on, the sources must stay as they are."""
        self._stamps = [Stamp(tensor) for _, tensor in self._sources()]
        if self.checkpointed and _can_compare(noisy):
            self._at_first = marks_of(noisy.detach())
        return self._stamps

    def end(self, noisy: Tensor) -> None:
        """From now on, what autograd asks for must have these numbers."""
        if self.uses and _can_compare(noisy):
            self._at_last = marks_of(noisy)

    def make(self, weight: Tensor) -> Tensor:
        """The noisy weight; an error where it would be another one than in the forward."""
        if self._stamps:
            self._check()
        return self._compared(self._make(weight), self._at_first)

    def again(self) -> Tensor:
        """The noisy weight, for one more of the saved tensors."""
        made = self.made  # Once: another thread may be about to put it away.
        if made is None:
            with torch.no_grad(), under_autocast(self._autocast):
                made = self.made = self._compared(self.make(self._weight), self._at_last)
        self.asked += 1
        if self.asked >= self.uses:
            self.asked, self.made = 0, None
        return made

    def _compared(self, made: Tensor, numbers: Tensor | None) -> Tensor:
        # Much is written past autograd, by NumPy and fused optimizers too, and a law may read what it likes.
        if numbers is not None and not torch.equal(numbers, marks_of(made.detach())):
            raise self._changed(", or something else that its noisy weight is made from,")
        return made

    def _check(self) -> None:
        for stamp, (what, tensor) in zip(self._stamps, self._sources(), strict=False):
            if not stamp.holds(tensor):
                raise self._changed(what)

    def _changed(self, what: str) -> RuntimeError:
        return RuntimeError(
            f"Parameter '{self._name}'{what} has been changed in place since the forward, so that its noisy "
            "weight cannot be made again. Change it after the backward, or use memory='keep'."
        )


def _can_compare(noisy: Tensor) -> bool:
    return has_numbers(noisy) and not is_captured(noisy)


def version_of(tensor: Tensor) -> int:
    """How often a tensor has been changed in place; inference tensors do not count it."""
    return 0 if tensor.is_inference() else tensor._version


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
