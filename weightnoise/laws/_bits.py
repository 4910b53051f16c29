"""Memory that returns a wrong bit."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from weightnoise._checks import check_choice, check_count
from weightnoise._errors import OptionError
from weightnoise._random import seeds as _seeds
from weightnoise._torch.autograd import handing_on
from weightnoise.laws._flipping import BITS, DTYPES, NAMES, flip, positions_of
from weightnoise.laws._law import Law, straight_through
from weightnoise.laws._options import check_bits, law_repr
from weightnoise.laws._quantize import divisor, precise, step_and_zero
from weightnoise.laws._rates import check_chip, check_rate, draw_events, event_mask, rate_problem
from weightnoise.laws._regions import Per, Tile

Position: TypeAlias = "int | Literal['sign', 'exponent', 'mantissa']"

_RARE = 1 / 64  # Below this rate single faults are drawn, and above it numbers for all bits.


@dataclass(frozen=True)
class BitFlip(Law):
    r"""Flipped bits of a stored weight: each bit flips with probability p, or ``count`` of them do.

    ``code="integer"``: ``c = round(w / d)`` in two's complement, ``d = max |w| / (2^(bits-1) - 1)``, and a weight
    whose code becomes c' moves by ``d (c' - c)``; the others stay as they are. Put ``Quantize(bits)`` first for a
    memory that holds nothing but the codes. A flipped sign bit moves a weight by half the range.

    ``code="float"``: the bits of the weight's own float16, bfloat16, float32 or float64. A flipped bit of the
    exponent may make 3e37 of 0.1, infinity or NaN.

    The gradient at the noisy weight goes to the clean one unchanged. A factor multiplies p or ``count``; the
    faults of a lower rate are among those of a higher one. The cost grows with the number of faults, below a rate
    of 1/64 and for floats; otherwise a draw takes 4 ``bits`` bytes per weight while it is in use.

    Args:
        p: probability that a bit flips, in [0, 1]. Rare ones are exact, down to 1e-12. None with ``count``.
        bits: length of an integer code, 2 to 16.
        code: ``"integer"`` or ``"float"``.
        positions: which bits may flip, all for None: numbers, 0 for the lowest, or ``"sign"``, ``"exponent"``,
            ``"mantissa"``; one or a tuple.
        count: exactly how many bits of each parameter flip, in different places.
        non_finite: ``"keep"``, or ``"clamp"`` for the largest finite number of that sign in the place of infinity
            and NaN.
        per: what has a step of its own: ``"tensor"``, ``"output"`` or ``"input"`` for each output or input of the
            layer, or the dimension of the channels.
        tile: rows and columns of the crossbars that the weight is cut into, as for `Gaussian`.
        chip: number of a specimen whose flipped bits stay flipped, as for `StuckAt`; None for other
            flips in each forward (soft errors). Cast to another float, a weight keeps the flips of its upper bits.

    Raises:
        ValueError: for a probability, a number of bits or a position out of range, and for p and count together.

    Example:
        >>> [Quantize(8), BitFlip(0.001), BitFlip(count=1, code="float", positions="exponent")]
        [Quantize(bits=8), BitFlip(p=0.001), BitFlip(code='float', positions=('exponent',), count=1)]

    Source:
        Reagen et al., Ares: a framework for quantifying the resilience of deep neural networks, 2018; bits of
        floats: Li et al., Understanding error propagation in deep learning neural network accelerators and
        applications, 2017.
    """

    p: float | None = None
    _: KW_ONLY
    bits: int = 8
    code: Literal["integer", "float"] = "integer"
    positions: Position | tuple[Position, ...] | None = None
    count: int | None = None
    non_finite: Literal["keep", "clamp"] = "keep"
    per: Per = "tensor"
    tile: Tile = None
    chip: int | None = None

    gradient = "straight-through"
    __repr__ = law_repr

    def __post_init__(self) -> None:
        if (self.p is None) == (self.count is None):
            raise OptionError(
                "BitFlip takes p, the probability of a flip, or count, how many there are: one of both."
            )
        if self.p is not None:
            check_rate("BitFlip", "p", self.p)
        else:
            check_count("BitFlip", "count", self.count, 0)
        check_bits("BitFlip", self.bits, True, self.per)
        check_choice("BitFlip", "code", self.code, ("integer", "float"))
        check_choice("BitFlip", "non_finite", self.non_finite, ("keep", "clamp"))
        check_chip("BitFlip", self.chip)
        if self.code == "float" and (self.bits != 8 or self.per != "tensor" or self.tile):
            raise OptionError("BitFlip(code='float') flips the bits of the weight itself: drop bits, per, tile.")
        if self.positions is not None:
            given = self.positions if isinstance(self.positions, (tuple, list)) else (self.positions,)
            object.__setattr__(self, "positions", tuple(given))
            names = NAMES if self.code == "float" else ("sign",)
            for position in given:
                if position not in names:
                    limit = 63 if self.code == "float" else self.bits - 1
                    check_count("BitFlip", f"one of {', '.join(names)}, or a bit in positions", position, 0, limit)
            if not given or len(set(given)) < len(given):
                raise OptionError(f"BitFlip(positions=...) must be one or more different bits, got {given!r}.")

    @property
    def bitwise(self) -> bool:  # type: ignore[override]
        """Whether it flips the bits of the weight's own dtype."""
        return self.code == "float"

    @property
    def _single(self) -> bool:
        """Whether single faults are drawn."""
        return self.p is None or self.code == "float" or self.positions is not None or self.p < _RARE

    @property
    def _chosen(self) -> tuple[Position, ...]:
        return self.positions if isinstance(self.positions, tuple) else ()

    def draw(self, weight: Tensor) -> Tensor:
        """A key for the flips with the number of the dtype; or numbers in the weight's shape, for each bit."""
        if self._single:
            dtype = torch.full((), DTYPES.index(weight.dtype), dtype=torch.int64, device="cpu")
            return torch.stack((_seeds.key(), dtype))
        return draw_events(weight, (self.bits, *weight.shape), self.p or 0.0)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        """``weight + d * (code with flipped bits - code)``, or the float with flipped bits."""
        if problem := self.factor_problem(factor):
            raise OptionError(problem)
        if self._single:
            clean = weight.detach()
            floats = self.code == "float"
            step = None if floats else step_and_zero(precise(weight), 2**self.bits - 1, True, self.regions)[0]
            bits = 0 if floats else self.bits
            clamp = self.non_finite == "clamp"
            flipped = flip(clean, noise, factor, step, self.p, self.count, bits, self._chosen, clamp)
            if torch.compiler.is_compiling():
                return straight_through(weight, flipped)
            return handing_on(weight, flipped)
        clean = precise(weight)
        step, _ = step_and_zero(clean, 2**self.bits - 1, True, self.regions)
        code = (clean / divisor(step)).round().to(torch.int32)
        stored = code & (2**self.bits - 1)
        for place, bit in enumerate(noise.unbind(0)):
            stored = stored ^ (event_mask(bit, self.p or 0.0, factor).to(torch.int32) << place)
        flipped = stored - ((stored >> (self.bits - 1)) << self.bits)
        return straight_through(weight, (clean + step * (flipped - code)).to(weight.dtype))

    def problem(self, weight: Tensor) -> str | None:
        """Why ``per``, ``positions`` or ``count`` do not fit ``weight``, or None."""
        bits = self.bits if self.code == "integer" else BITS[DTYPES.index(weight.dtype)]
        for position in self._chosen:
            if isinstance(position, int) and position >= bits:
                return f"{weight.dtype} has no bit {position}, it has {bits}"
        there = weight.numel() * len(
            positions_of(weight.dtype, bits if self.code == "integer" else 0, self._chosen)
        )
        if self.count is not None and self.count > there:
            return f"count={self.count} is more than the {there} bits that it has"
        return super().problem(weight)

    def factor_problem(self, factor: float) -> str | None:
        """Why ``p`` cannot be multiplied by ``factor``, or None."""
        return None if self.p is None else rate_problem(self, self.p, factor)
