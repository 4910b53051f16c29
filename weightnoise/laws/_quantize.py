"""Weights of few bits: rounding, and noise that stands for it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from weightnoise._checks import check_choice, check_count, is_number
from weightnoise._errors import OptionError
from weightnoise._random import draws as _random
from weightnoise.laws._law import Law, straight_through
from weightnoise.laws._options import check_bits, check_levels, law_repr
from weightnoise.laws._pieces import by_pieces
from weightnoise.laws._rates import (
    check_rate,
    draw_blocks,
    event_mask,
    rate_problem,
    rounded_at_random,
    spread_blocks,
)
from weightnoise.laws._regions import Per, Tile
from weightnoise.laws._scale import Gradient, add_scaled, extremes, statistic, wide


def step_and_zero(
    weight: Tensor, levels: int, symmetric: bool, per: Per, room: bool = False
) -> tuple[Tensor, Tensor | float]:
    """The step d between levels, and the code that stands for 0; 1/2 where 0 lies in the middle of two.

    Symmetric: d covers [-max |w|, max |w|] in ``levels - 1`` steps. Affine: d covers [min w, max w], widened
    to hold 0, in as many, and 0 has a code of its own. With ``room``, a range on both sides of 0
    takes one step less, so that each weight lies between two codes. Where all weights are 0, d is 0.
    """
    if symmetric:
        return statistic(weight, "absmax", per) / (0.5 * (levels - 1)), 0.0 if levels % 2 else 0.5
    low, high = extremes(wide(weight), per)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    top = levels - 1
    if not room:
        step = (high - low) / top
        return step, torch.round(-low / divisor(step))
    step = (high - low) / torch.where((low < 0) & (high > 0), top - 1.0, float(top))
    return step, torch.ceil(-low / divisor(step)).clamp(max=top)


def divisor(step: Tensor) -> Tensor:
    """The step, to divide by: 1 where it is 0, as of a channel of zeros."""
    return torch.where(step > 0, step, 1.0)


def precise(weight: Tensor) -> Tensor:
    """The weight without its gradient, in float32 or better: 8 bits of mantissa cannot hold a code."""
    return wide(weight.detach())


@dataclass(frozen=True)
class Quantize(Law):
    r"""Weights rounded to ``bits`` bits: ``d (clamp(round(w / d + z), lowest, highest) - z)``.

    Symmetric: z = 0, ``d = max |w| / (2^(bits-1) - 1)``, codes from ``-(2^(bits-1) - 1)`` up.
    Affine: codes 0 to ``2^bits - 1`` cover [min w, max w] and 0 exactly, ``d = (max w - min w) / (2^bits - 1)``.
    Stochastic rounding adds ``u ~ U(-1/2, 1/2)`` before it rounds: unbiased, with variance ``f (1 - f) d^2``
    at the fraction f between two levels. There the affine d is ``(max w - min w) / (2^bits - 2)`` where weights
    have both signs: 0 has a level of its own, so that the ends of the range lie between levels, and the mean
    would be off by up to d/2 without one more beyond them.

    ``levels`` is any number of them in the place of ``2^bits - 1`` (symmetric) and ``2^bits`` (affine): symmetric,
    an even one has levels at d/2, 3d/2 and so on, and none at 0. With ``low`` and ``high`` the levels go from one
    to the other, whatever the weights are, and weights outside read the end: a converter of a fixed range.

    The gradient at the rounded weight goes to the clean one unchanged. Without a range every weight lies within
    that of the codes; for the saturated form, with no gradient outside a range, put a `Clip` first.
    A factor multiplies ``subset`` where that is below 1; otherwise the code is as it is. The
    mirrored draw rounds with -u, and picks from the other end.

    Args:
        bits: length of the code, 2 (affine: 1) to 16. 4 to 8 is usual.
        symmetric: codes on both sides of 0, or codes that cover exactly [min w, max w].
        per: what has a step of its own: ``"tensor"``, ``"output"`` or ``"input"`` for each output or input of the
            layer, or the dimension of the channels.
        tile: rows and columns of the crossbars that the weight is cut into, as for `Gaussian`.
        levels: how many levels there are, 2 (symmetric: 3, or an even number) to 65,536, instead of ``bits``; 254
            and 255 are those of common converters.
        low: the lowest level, in units of the weight; with ``high``.
        high: the highest level.
        stochastic: round up or down at random; outside of a fixed range the end is read all the same.
        subset: the fraction of weights that are rounded, chosen anew in each forward (Quant-Noise);
            the others stay as they are. 0.1 in the source.
        block: choose runs of this many neighbouring weights of one output together. 8 in the source.

    Raises:
        ValueError: for bits, rates or blocks out of range, for ``block`` without ``subset``, and for stochastic
            rounding to 1 bit, whose mean cannot be right on both sides of 0.

    Example:
        >>> law = Quantize(3)
        >>> law.apply(torch.tensor([0.9, 0.4, -0.1]), law.draw(torch.zeros(3)), 1.0)
        tensor([0.9000, 0.3000, 0.0000])

    Source:
        Affine codes with a level for 0: Jacob et al., Quantization and training of neural networks for
        efficient integer-arithmetic-only inference, 2018, arXiv 1712.05877; stochastic rounding: Gupta et al.,
        Deep learning with limited numerical precision, 2015, arXiv 1502.02551; random subsets: Fan et al.,
        Training with quantization noise for extreme model compression, 2020, arXiv 2004.07320.
    """

    bits: int | None = None
    _: KW_ONLY
    symmetric: bool = True
    levels: int | None = None
    low: float | None = None
    high: float | None = None
    per: Per = "tensor"
    tile: Tile = None
    stochastic: bool = False
    subset: float = 1.0
    block: int = 1

    gradient = "straight-through"
    __repr__ = law_repr

    def __post_init__(self) -> None:
        check_levels("Quantize", self.bits, self.levels, self.symmetric, self.per)
        check_choice("Quantize", "stochastic", self.stochastic, (True, False))
        self._check_range()
        if self.stochastic and self._levels == 2 and not self.symmetric and self.low is None:
            raise OptionError(
                f"Quantize({'bits=1' if self.bits else 'levels=2'}, stochastic=True) has the levels 0 and d "
                "alone, so that weights of the other sign could not be right on average; use 2 bits, or "
                "stochastic=False."
            )
        check_rate("Quantize", "subset", self.subset)
        check_count("Quantize", "block", self.block, 1)
        if self.block > 1 and self.subset == 1:
            raise OptionError("Quantize(block=...) has no meaning with subset=1: every weight is rounded.")

    def _check_range(self) -> None:
        if self.low is None and self.high is None:
            return
        if not (is_number(self.low) and is_number(self.high)) or self.low >= self.high:  # type: ignore[operator]
            raise OptionError(
                f"Quantize(low={self.low!r}, high={self.high!r}) must be two finite numbers, in this order."
            )
        if self.per != "tensor" or self.tile:
            raise OptionError("Quantize(per=..., tile=...) has no meaning with a fixed range: drop low and high.")

    @property
    def _levels(self) -> int:
        levels: int = 2 ** (self.bits or 0) - self.symmetric if self.levels is None else self.levels
        return levels

    def _grid(self, weight: Tensor) -> tuple[Tensor, Tensor | float, int, int]:
        """The step, the code of 0, and the lowest and the highest code."""
        levels = self._levels
        if self.low is not None and self.high is not None:
            step = (self.high - self.low) / (levels - 1)
            size = torch.full((), step, dtype=weight.dtype, device=weight.device)
            return size, -self.low / step, 0, levels - 1
        of_weight = step_and_zero(weight, levels, self.symmetric, self.regions, self.stochastic)
        top = levels // 2 if self.symmetric else levels - 1
        return *of_weight, top - (levels - 1), top

    def draw(self, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Numbers for the rounding, uniform on [0, 1), and for the subset where there is one."""
        rounding = _random.unit_uniform(weight, weight.shape) if self.stochastic else None
        return rounding, draw_blocks(weight, self.block, self.subset) if self.subset < 1 else None

    def apply(self, weight: Tensor, noise: tuple[Tensor | None, Tensor | None], factor: float) -> Tensor:
        """The rounded weight."""
        if problem := self.factor_problem(factor):
            raise OptionError(problem)
        rounding, chosen = noise
        step, zero, bottom, top = self._grid(precise(weight))

        def round_(weight: Tensor, step: Tensor, zero: Tensor | float, rounding: Tensor | None) -> Tensor:
            code = wide(weight) / divisor(step) + zero
            code = code.round() if rounding is None else rounded_at_random(code, rounding, factor)
            code = code.clamp(bottom, top)
            return (step * (code - zero)).to(weight.dtype)

        rounded = by_pieces(round_, weight.detach(), step, zero, rounding)
        if chosen is not None:
            picked = spread_blocks(event_mask(chosen, self.subset, factor), weight, self.block)
            rounded = torch.where(picked, rounded, weight.detach())
        return straight_through(weight, rounded)

    def factor_problem(self, factor: float) -> str | None:
        """Why ``subset`` cannot be multiplied by ``factor``, or None."""
        return rate_problem(self, self.subset, factor) if self.subset < 1 else None


@dataclass(frozen=True)
class QuantizationNoise(Law):
    r"""Noise that stands for rounding (pseudo-quantisation): ``w + U(-d/2, d/2)`` per element.

    d is the step of ``Quantize(bits, symmetric=..., per=...)``; where all weights are 0 it is 0. Unlike
    rounding the noise is smooth in w and in d, and it has no dead zones; its variance is ``d^2 / 12``, that of
    rounding on average.

    Args:
        bits: length of the code, 2 (affine: 1) to 16. 2 to 15, from 8, in the source.
        symmetric: as for `Quantize`.
        per: what has a step of its own: ``"tensor"``, ``"output"`` or ``"input"`` for each output or input of the
            layer, or the dimension of the channels.
        tile: rows and columns of the crossbars that the weight is cut into, as for `Gaussian`.
        gradient: ``"straight-through"`` takes d as a constant; ``"exact"`` differentiates through it.

    Raises:
        ValueError: for bits out of range.

    Example:
        >>> QuantizationNoise(4, per=0)
        QuantizationNoise(bits=4, per=0)

    Source:
        Défossez, Adi and Synnaeve, Differentiable model compression via pseudo quantization noise,
        2021, arXiv 2104.09987.
    """

    bits: int
    _: KW_ONLY
    symmetric: bool = True
    per: Per = "tensor"
    tile: Tile = None
    gradient: Gradient = "straight-through"

    sign_symmetric = True
    __repr__ = law_repr

    def __post_init__(self) -> None:
        check_bits("QuantizationNoise", self.bits, self.symmetric, self.per)
        check_choice("QuantizationNoise", "gradient", self.gradient, ("straight-through", "exact"))

    def draw(self, weight: Tensor) -> Tensor:
        """Numbers uniform on [-1, 1] in the weight's shape."""
        return _random.symmetric_uniform(weight)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        """``weight + factor * d / 2 * noise``."""
        clean = weight if self.gradient == "exact" else weight.detach()
        step, _ = step_and_zero(clean, 2**self.bits - self.symmetric, self.symmetric, self.regions)
        return add_scaled(weight, noise, factor * 0.5, step)
