"""Noise that the numbers of a weight cannot hold: it rounds away, or becomes infinite."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from weightnoise._errors import InfiniteNoiseWarning, NoiseRoundsAwayWarning
from weightnoise._noise.recipe import tensors_in
from weightnoise._random import seeds as _seeds
from weightnoise._torch.modes import has_numbers, is_captured, outside_transforms, runs_eagerly
from weightnoise._torch.modules import is_dtensor
from weightnoise._torch.tracing import traced_frames, traced_object, while_tracing
from weightnoise.laws import Law
from weightnoise.laws._complete import has_user_law
from weightnoise.laws._law import apply_law
from weightnoise.laws._scale import wide

if TYPE_CHECKING:
    from weightnoise._noise.weight_noise import WeightNoise

Fault: TypeAlias = Literal["rounds away", "infinite"]

_SEED = 0
_CHECKED = 4096  # Weights.
_TAIL = 6  # Standard deviations, beyond which few numbers lie.
_RARER = 16  # How many times more reads there are before the next look.
_NEAR = 1.5
_HALF = (torch.float16, torch.bfloat16)


class Lookout:
    """Looks at noisy weights of one noise whenever dtype or factor are new, and now and then; warns once.

    A weight grows, a strength is learned: the looks after the first come ever more rarely.

    Attributes:
        dtype: of the weight that was looked at last.
        least, most: between which factors there is no need to.
        reads: how many noisy weights there were.
        due: at how many of them to look again.
        warned: whether it has warned.
    """

    __slots__ = ("dtype", "due", "least", "most", "reads", "warned")

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype
        self.least, self.most = (1.0, 1.0) if dtype is not None else (math.inf, 0.0)
        self.reads = 0
        self.due = _RARER
        self.warned = False

    def note(self, noise: WeightNoise, weight: Tensor, noisy: Tensor, factor: float) -> None:
        """Look where it is time to; the hot path spells this out."""
        if runs_eagerly():
            self.reads += 1
            if not self._knows(weight.dtype, factor) or self.reads >= self.due:
                self.at(noise, weight, noisy, factor)

    def at(self, noise: WeightNoise, weight: Tensor, noisy: Tensor, factor: float) -> None:
        """Look at a noisy weight and what it was made from; warn if its numbers do not hold the noise."""
        if not has_numbers(weight) or is_captured(weight) or is_dtensor(weight):
            return
        if factor == 0:
            return
        self._note(weight.dtype, abs(factor))
        if self.reads >= self.due:
            self.due = _RARER * self.reads
        if not self.warned and weight.numel() and _is_suspicious(weight.detach(), noisy.detach()):
            self._look(noise, weight.detach(), factor)

    def from_outside(self, noise: WeightNoise, factor: float) -> None:
        """Look at the Parameter where a noisy weight is no plain tensor: in a transformation, or while tracing."""
        weight = noise.parameter()
        if weight is None or not has_numbers(weight) or is_dtensor(weight) or is_captured(weight) or factor == 0:
            return
        if not self._knows(weight.dtype, factor):
            self._note(weight.dtype, abs(factor))
            if not self.warned:
                with outside_transforms():
                    self._look(noise, weight.detach(), factor)

    def _knows(self, dtype: torch.dtype, factor: float) -> bool:
        return dtype is self.dtype and self.least <= abs(factor) <= self.most

    def _note(self, dtype: torch.dtype, size: float) -> None:
        if dtype is not self.dtype:
            self.least, self.most = size, size
        if not self.least <= size <= self.most:  # A ramp is looked at some times, and not at every step.
            self.least, self.most = min(self.least, size / _NEAR), max(self.most, size * _NEAR)
        self.dtype = dtype

    def _look(self, noise: WeightNoise, weight: Tensor, factor: float) -> None:
        found = fault(noise.handed, weight, abs(factor), noise.strengths())
        if found is not None:
            self.warned = True
            text = _ROUNDS_AWAY if found == "rounds away" else _INFINITE
            kind = NoiseRoundsAwayWarning if found == "rounds away" else InfiniteNoiseWarning
            dtype = str(weight.dtype).removeprefix("torch.")
            warnings.warn(text.format(name=noise.name, dtype=dtype, factor=factor), kind, stacklevel=4)


@while_tracing
def look_while_tracing() -> None:
    """Look at the weight whose read Dynamo traces. It hands nothing over, or it would compile for each noise."""
    noise = next((one for frame in traced_frames() if (one := traced_object(frame, "self")) is not None), None)
    if noise is not None and hasattr(noise, "lookout"):
        noise.lookout.from_outside(noise, noise.control.factor)


def fault(law: Law, weight: Tensor, factor: float, strengths: Mapping[str, Tensor]) -> Fault | None:
    """What the numbers of a weight cannot hold of the noise of a law, by seeded draws on some of the weights.

    Laws of users are asked in short dtypes alone: who knows what they do in a longer one.
    """
    if is_dtensor(weight):
        return None
    user, short = has_user_law(law), weight.dtype in _HALF
    if (
        _is_bitwise(law)
        or not has_numbers(weight)
        or weight.numel() == 0
        or (not short and (user or weight.device.type == "mps"))
    ):
        return None
    rows = weight.shape[0] if weight.ndim and (user or any(True for _ in tensors_in(law))) else _rows(weight)
    part = weight[:rows] if weight.ndim else weight
    exact = part.float() if short else part.double()
    learned = {
        name: (value[:rows] if value.shape[:1] == weight.shape[:1] else value).to(exact.dtype)
        for name, value in strengths.items()
    }
    with _seeds.seeded(_SEED, weight.device), torch.no_grad():
        noisy = apply_law(law, exact, law.draw(exact), factor, learned)
        # More than what was rounded on the way.
        moved = (noisy - exact).abs() > 8 * torch.finfo(exact.dtype).eps * exact.abs()
        if not bool(moved.any()):
            return None
        if not _reach(exact, noisy) <= torch.finfo(weight.dtype).max:
            return "infinite"
        kept = noisy.to(weight.dtype) != part
    return "rounds away" if (moved & kept).sum().item() < 0.5 * moved.sum().item() else None


def _is_bitwise(law: Law) -> bool:
    """Whether it flips bits of the numbers themselves, of which any may come out."""
    return law.bitwise or any(map(_is_bitwise, law.inside))


def _is_suspicious(weight: Tensor, noisy: Tensor) -> bool:
    """Whether many of some weights are what they were, or may be no numbers any more; nothing is drawn."""
    with torch.no_grad():
        rows = _rows(weight)
        if weight.ndim:
            weight, noisy = weight[:rows], noisy[:rows]
        if not _reach(weight, noisy) <= torch.finfo(weight.dtype).max:
            return True
        return (weight != noisy).sum().item() < 0.75 * weight.numel()


def _rows(weight: Tensor) -> int:
    """How many rows to look at."""
    return max(1, _CHECKED * weight.shape[0] // max(weight.numel(), 1)) if weight.ndim else 1


def _reach(weight: Tensor, noisy: Tensor) -> float:
    """How large a noisy weight may be."""
    weight, moved = wide(weight), wide(noisy) - wide(weight)
    largest = moved.abs().max()  # Squares of large numbers are none.
    spread = (moved / largest).square().mean().sqrt() * largest if largest > 0 else largest
    return weight.abs().max().item() + _TAIL * spread.item()


_ROUNDS_AWAY = (
    "Most of the noise on parameter '{name}' is smaller than half the spacing of its {dtype} numbers and rounds "
    "away, at a factor of {factor:g}. Use stronger noise, or weights of more digits: float32 in place of bfloat16 "
    "(autocast computes with fewer)."
)
_INFINITE = (
    "The noise on parameter '{name}' is so strong, at a factor of {factor:g}, that noisy weights are no numbers "
    "of {dtype} any more, but infinite. Use weaker noise."
)
