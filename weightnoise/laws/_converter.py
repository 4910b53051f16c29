"""Converters between digital numbers and the analog signals of a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from weightnoise._checks import check_choice, check_count, check_strength, is_number
from weightnoise._errors import OptionError
from weightnoise.laws._complete import Completed
from weightnoise.laws._law import Law
from weightnoise.laws._learned import filled_per
from weightnoise.laws._options import check_levels, law_repr
from weightnoise.laws._products import largest_product, product_problem
from weightnoise.laws._quantize import divisor
from weightnoise.laws._ranges import METHODS, Method, asked_range, decaying
from weightnoise.laws._regions import Per
from weightnoise.laws._scale import wide


@dataclass(frozen=True)
class Converter(Law):
    r"""A converter at the input (DAC) or output (ADC) of a layer: x cut to its range r and rounded to a level.

    Signed: ``d (round(clip(x, -r, r) / d + z) - z)`` with ``d = 2 r / (L - 1)`` for L levels, z = 0 for an odd
    number of levels, one of which is 0, and z = 1/2 for an even one, with levels at d/2, 3d/2 and so on.
    Unsigned: ``d round(clip(x, 0, r) / d)`` with ``d = r / (L - 1)``.

    The range is a number, or comes from the data, or is learned. From the data it is that of the first ``batches``
    forwards in training mode, or of `calibrate_ranges`: ``"max"``, the largest \|x\| of all of them; ``"std"``,
    k times the standard deviation about the mean; ``"quantile"``, the smallest number that at least the share
    ``quantile`` of all \|x\| does not exceed; the latter two as means over the batches. Negative inputs of an
    unsigned converter count as 0. A list of laws changes nothing: the range is that of the activation itself.

    An input inside the range has the gradient at the rounded one, one outside has none: it gives its gradient,
    with its sign, to a learned range r. In the first ``batches`` forwards a learned range has the gradient 0.
    With ``decay`` each backward adds ``decay r [c < decay_below]``, c the share of the inputs beyond r, to the
    gradient of r: so it shrinks while it clips hardly anything. A factor leaves a converter as it is, and
    `no_noise` switches it off. A mirrored draw is the same.

    Args:
        bits: length of the code, 2 (unsigned: 1) to 16: ``2^bits - 1`` levels, unsigned ``2^bits``.
        levels: how many levels there are, 2 to 65,536, instead of ``bits``.
        range: a positive number, in units of the activation; or ``"max"``, ``"std"`` or ``"quantile"``.
        k: how many standard deviations.
        quantile: which share of the inputs lies within the range, above 0 and at most 1.
        learned: whether the range is a Parameter, which begins at the number or at that of the data.
        signed: whether the range is [-r, r], or [0, r].
        per: what has a range of its own: ``"tensor"``; ``"output"`` or ``"input"``, each channel of the output or
            input of a layer; or the dimension of the channels, from the end.
        batches: how many forwards in training mode set a range from the data.
        decay: how much of itself a learned range has in its gradient, where it decays; 0.001 in aihwkit.
        decay_below: the share of clipped inputs from which on it does not, above 0 and at most 1.
        range_gradient: what an input inside gives to a learned range: ``"pact"``, nothing; ``"lsq"``, its gradient
            times ``(rounded - x) / r``.
        relative_to: ``"weights"`` counts a range in the largest product of a layer, for a number at its output:
            the range of the Converter at the input times max \|w\|, of the tensor or, with ``per="output"``, of
            each output. These two are constants for the gradient, and the range is then one for the layer.
        group: layers whose converters name it have one range together, learned or from the data: the largest that
            ``batches`` forwards of each of them ask for, or the mean over the layers too.

    Raises:
        ValueError: for options out of range, and for those that make no sense together.

    Example:
        >>> model = add_activation_noise(nn.Linear(4, 2), Converter(8, range=3.0), at="input")
        >>> law = Converter(levels=5, range=1.0)
        >>> law.apply(torch.tensor([0.3, -0.2, 2.0]), law.draw(torch.zeros(3)), 1.0)
        tensor([0.5000, 0.0000, 1.0000])

    Source:
        Gradient of the range: Choi et al., PACT, 2018, arXiv 1805.06085; Esser et al., Learned step size
        quantization, 2020, arXiv 1902.08153. Decay: aihwkit; Rasch et al., Hardware-aware training for large-scale
        and diverse deep learning inference workloads, 2023, arXiv 2302.08469. Ranges from the first batches, then
        learned, and an output range relative to the weights: Büchel et al., Analog foundation models, 2025, arXiv
        2505.09663.
    """

    bits: int | None = None
    _: KW_ONLY
    levels: int | None = None
    range: float | Method = "std"
    k: float = 3.0
    quantile: float = 0.999
    learned: bool = False
    signed: bool = True
    per: Per = "tensor"
    batches: int = 100
    decay: float = 0.0
    decay_below: float = 0.05
    range_gradient: Literal["pact", "lsq"] = "pact"
    relative_to: Literal["weights"] | None = None
    group: str | None = None

    __repr__ = law_repr

    def __post_init__(self) -> None:
        check_choice("Converter", "signed", self.signed, (True, False))
        check_levels("Converter", self.bits, self.levels, self.signed, self.per)
        for option in ("k", "quantile", "decay", "decay_below"):
            check_strength("Converter", option, getattr(self, option))
        if not self.k or not (0 < self.quantile <= 1 and 0 < self.decay_below <= 1):
            raise OptionError(
                f"Converter(k={self.k!r}, quantile={self.quantile!r}, decay_below={self.decay_below!r}): k is "
                "positive, and the other two in (0, 1]."
            )
        if self.decay and not self.learned:
            raise OptionError(f"Converter(decay={self.decay!r}) is of a learned range: it needs learned=True.")
        check_choice("Converter", "learned", self.learned, (True, False))
        check_count("Converter", "batches", self.batches, 1)
        check_choice("Converter", "range_gradient", self.range_gradient, ("pact", "lsq"))
        check_choice("Converter", "relative_to", self.relative_to, (None, "weights"))
        self._check_range()

    def _check_range(self) -> None:
        if isinstance(self.range, str):
            check_choice("Converter", "range", self.range, METHODS)
        elif not is_number(self.range) or self.range <= 0:
            raise OptionError(
                f"Converter(range=...) must be a positive number or one of {METHODS}, got {self.range!r}."
            )
        if self.relative_to and self.from_data:
            raise OptionError(
                "Converter(relative_to='weights') counts a number in the products of a layer: range=12.0."
            )
        if self.group is None:
            return
        if not isinstance(self.group, str) or not (self.learned or self.from_data):
            raise OptionError(
                f"Converter(group={self.group!r}) is the name of a range that layers learn or measure together: "
                "it needs learned=True, or range='max', 'std' or 'quantile'. A number that is not learned is the "
                "same anyway."
            )
        if self.per != "tensor" and not self.relative_to:
            raise OptionError(f"Converter(group={self.group!r}, per={self.per!r}): a common range is one number.")

    @property
    def from_data(self) -> bool:
        """Whether the range, or its first value, comes from the data."""
        return isinstance(self.range, str)

    def strengths(self, weight: Tensor) -> dict[str, Tensor]:
        """``range``, if it is learned; without a number until there are data."""
        return {"range": self._first(weight)} if self.learned else {}

    def given(self, weight: Tensor) -> dict[str, Tensor]:
        """Of a range from data, ``range`` where it is not learned, and how many ``batches`` it has seen."""
        if not self.from_data:
            return {}
        own = {} if self.learned else {"range": self._first(weight)}
        return {**own, "batches": torch.zeros((), dtype=torch.int64, device=weight.device)}

    def range_rule(self) -> tuple[object, ...]:
        """How its range comes about, which is one for all layers of a group."""
        return self.range, self.learned, self.k, self.quantile, self.batches, self.signed, self.relative_to

    def _first(self, like: Tensor) -> Tensor:
        value = math.nan if isinstance(self.range, str) else self.range
        whole = self.relative_to or self.regions == "tensor"
        return like.new_full((1,), value) if whole else filled_per(like, self.regions, value)

    def draw(self, weight: Tensor) -> None:
        """Nothing is drawn."""

    def apply(
        self, weight: Tensor, noise: None, factor: float, strengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The activation, cut to the range and rounded; without strengths, to its own range if that is of data."""
        top, x = self.full_scale(weight, strengths), wide(weight)
        with torch.no_grad():
            rounded = self._rounded(x, top)
        inside = (x.abs() <= top) if self.signed else (x >= 0) & (x <= top)
        if self.decay and top.requires_grad:
            top = decaying(top, (x.abs() if self.signed else x) > top, self.decay, self.decay_below)
        edge = torch.where(x > 0, top, -top if self.signed else 0.0)
        kept = x
        if self.range_gradient == "lsq":
            share = (rounded - x.detach()) / divisor(top.detach())
            kept = x + (top - top.detach()) * share
        cut = torch.where(inside, kept, edge)
        return (rounded + (cut - cut.detach())).to(weight.dtype)

    def full_scale(self, weight: Tensor, strengths: Mapping[str, Tensor] | None = None) -> Tensor:
        """The range, positive, in float32 or better."""
        if strengths and "range" in strengths:
            own = wide(strengths["range"]).to(weight.device)
            top = torch.where(own < 0, -own, own)  # The gradient of abs is 0 at 0, where a range would stay.
            return top if weight.ndim else top.reshape(())
        if isinstance(self.range, str):
            return self.measured(weight)
        return torch.full((), self.range, dtype=wide(weight).dtype, device=weight.device)

    def _rounded(self, x: Tensor, top: Tensor) -> Tensor:
        levels = self.levels or 2 ** (self.bits or 0) - self.signed
        step = top * ((1 + self.signed) / (levels - 1))
        zero = 0.5 if self.signed and levels % 2 == 0 else 0.0
        highest = levels // 2 if self.signed else levels - 1
        code = (torch.clamp(x, -top if self.signed else torch.zeros_like(top), top) / divisor(step) + zero).round()
        return step * (code.clamp(highest - (levels - 1), highest) - zero)

    def measured(self, value: Tensor, method: Method | None = None) -> Tensor:
        """The range that one batch asks for, shaped to broadcast; where that is 0, the largest, or 1."""
        value = wide(value.detach())
        value = value if self.signed else value.clamp(min=0.0)
        return asked_range(value, method or self.range, self.k, self.quantile, self.regions)  # type: ignore[arg-type]

    def at(self, module: nn.Module, inputs: Tensor) -> Law:
        """The law for one call: itself, or in units of the layer's largest product."""
        if not self.relative_to:
            return self
        return _InUnits(self, largest_product(module, inputs, self.per == "tensor"))

    def module_problem(self, module: nn.Module, at: str) -> str | None:
        """Why it does not fit the activations of ``module``, or None."""
        return product_problem(module, at) if self.relative_to else super().module_problem(module, at)


@dataclass(frozen=True)
class _InUnits(Law):
    """A converter of what is counted in another unit."""

    converter: Converter
    unit: Tensor

    def strengths(self, weight: Tensor) -> dict[str, Tensor]:
        """Those of the converter."""
        return self.converter.strengths(weight)

    def draw(self, weight: Tensor) -> None:
        """Nothing is drawn."""

    def apply(
        self, weight: Tensor, noise: None, factor: float, strengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """What the converter makes of the number of units."""
        made = self.converter.apply(wide(weight) / divisor(self.unit), None, factor, strengths)
        return (made * self.unit).to(weight.dtype)


def converters(law: Law) -> list[tuple[str, Converter]]:
    """The converters in a law, each with the end of the names of its strengths."""
    if isinstance(law, Completed) and isinstance(law.law, Converter):
        law = law.law
    if isinstance(law, Converter):
        return [("", law)]
    return [(end + law.end(place), one) for place, part in enumerate(law.parts) for end, one in converters(part)]
