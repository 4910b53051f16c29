"""Changes of the weights without chance: clipping, and the temperature of the chip.

They have no random strength, so that a factor leaves them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from weightnoise._checks import check_choice, check_per, check_strength
from weightnoise._errors import OptionError
from weightnoise.laws._law import Law, straight_through
from weightnoise.laws._options import law_repr
from weightnoise.laws._regions import Per, Regions, Tile
from weightnoise.laws._scale import Gradient, extremes, statistic, wide

_ZERO_CELSIUS = 273.0  # In kelvin; rounded as in the source of `Temperature`.


@dataclass(frozen=True)
class Clip(Law):
    r"""Clipped weights: w cut to ``[-k std(w), k std(w)]``, or to the fixed bounds ``[low, high]``.

    The standard deviation is that about the mean; equal weights, which have none, stay as they are.

    Usually first in a list, before quantisation and noise, which then have a smaller range to fill.
    After removal the trained weights are what they were, outside the range too; `clip_weights` cuts
    the clean weights themselves after an optimizer step. A factor leaves it as it is.

    Args:
        k: how many standard deviations of the weights to keep. 2.5 where no bounds are given.
        low: the smallest weight, in units of the weight.
        high: the largest weight.
        per: what has a standard deviation of its own: ``"tensor"``, ``"output"`` or ``"input"`` for each
            output or input of the layer, or the dimension of the channels.
        tile: rows and columns of the crossbars that the weight is cut into, as for `Gaussian`.
        gradient: ``"exact"`` gives weights outside the range no gradient of their own (what they do
            to std(w) counts); ``"straight-through"`` hands the gradient at the clipped weight to all.

    Raises:
        ValueError: for ``k`` together with bounds, a ``k`` that is not positive, bounds that are not
            in order, and ``per`` with fixed bounds.

    Example:
        >>> law = Clip(low=-1.0, high=1.0)
        >>> law.apply(torch.tensor([-3.0, 0.5]), law.draw(torch.zeros(2)), 1.0)
        tensor([-1.0000,  0.5000])

    Source:
        Joshi et al., Accurate deep neural network inference using computational phase-change
        memory, 2020, arXiv 1906.03138.
    """

    k: float | None = None
    _: KW_ONLY
    low: float | None = None
    high: float | None = None
    per: Per = "tensor"
    tile: Tile = None
    gradient: Gradient = "exact"

    __repr__ = law_repr

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            if self.k is None:
                object.__setattr__(self, "k", 2.5)
            check_strength("Clip", "k", self.k)
            if self.k == 0:
                raise OptionError("Clip(k=0) would make every weight zero; k must be positive.")
        elif self.k is not None:
            raise OptionError("Clip takes k or bounds, not both: the range would have two definitions.")
        elif self.per != "tensor" or self.tile:
            option = f"per={self.per!r}" if self.tile is None else f"tile={self.tile}"
            raise OptionError(f"Clip({option}) has no meaning with fixed bounds; use k, or drop it.")
        for option, bound in (("low", self.low), ("high", self.high)):
            if bound is not None and (isinstance(bound, bool) or not math.isfinite(bound)):
                raise OptionError(f"Clip({option}=...) must be a finite number, got {bound!r}.")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise OptionError(f"Clip(low={self.low!r}, high={self.high!r}): low must be below high.")
        check_per("Clip", self.per)
        check_choice("Clip", "gradient", self.gradient, ("exact", "straight-through"))

    def draw(self, weight: Tensor) -> None:
        """Nothing is drawn."""

    def apply(self, weight: Tensor, noise: None, factor: float) -> Tensor:
        """The weight, cut to the range."""
        clean = weight if self.gradient == "exact" else weight.detach()
        low: Any = self.low
        high: Any = self.high
        if self.k is not None:
            high = self.limit(clean)
            low = -high
        clipped = torch.clamp(clean, low, high).to(weight.dtype)
        return clipped if self.gradient == "exact" else straight_through(weight, clipped)

    def limit(self, weight: Tensor) -> Tensor:
        """``k std(weight)``; infinite where all weights are equal: none of them sticks out."""
        lowest, highest = extremes(weight, self.regions)
        return torch.where(lowest < highest, (self.k or 0.0) * statistic(weight, "std", self.regions), math.inf)


@dataclass(frozen=True)
class LearnedClip(Law):
    r"""Weights clipped at a learned bound: w cut to ``[-bound, bound]``.

    ``bound`` is a Parameter with one element, or one for each channel, which begins at ``k std(w)``, or at max |w|
    where all weights are equal. A weight inside the range has its gradient, and the bound none of it; one outside
    gives it to the bound, with its sign. Only |bound| counts. Usually first in a list; a factor leaves it.

    Args:
        k: how many standard deviations of the weights the first bound is; positive.
        per: what has a bound of its own: ``"tensor"``, ``"output"`` or ``"input"`` for each output or input of the
            layer, or the dimension of the channels.
        scaled: multiply the gradient of a bound by ``1 / sqrt(n)`` for its n weights, so that under plain gradient
            descent it moves as slowly as a weight (LSQ); it is then not the derivative of the loss.

    Raises:
        ValueError: for a ``k`` that is not positive, and an unknown ``per``.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), [LearnedClip(per="output"), Gaussian(0.1)])
        >>> learned_strengths(model)["parametrizations.weight.0.bound_0"].shape
        torch.Size([2, 1])

    Source:
        Choi et al., PACT: parameterized clipping activation for quantized neural networks, 2018, arXiv 1805.06085;
        the scale of the gradient: Esser et al., Learned step size quantization, 2020, arXiv 1902.08153.
    """

    k: float = 2.5
    _: KW_ONLY
    per: Per = "tensor"
    scaled: bool = False

    __repr__ = law_repr

    def __post_init__(self) -> None:
        check_strength("LearnedClip", "k", self.k)
        if self.k == 0:
            raise OptionError("LearnedClip(k=0) would make every weight zero; k must be positive.")
        check_per("LearnedClip", self.per)
        check_choice("LearnedClip", "scaled", self.scaled, (True, False))

    def strengths(self, weight: Tensor) -> dict[str, Tensor]:
        """``bound``, shaped to broadcast against the weight."""
        weight = weight.detach()
        limit = Clip(self.k, per=self.regions).limit(weight)
        largest = statistic(weight, "absmax", self.regions)
        bound = torch.where(limit.isfinite(), limit, torch.where(largest > 0, largest, 1.0))
        return {"bound": bound.to(weight.dtype)}

    def draw(self, weight: Tensor) -> None:
        """Nothing is drawn."""

    def apply(
        self, weight: Tensor, noise: None, factor: float, strengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The weight, cut to the range."""
        bound = (strengths or self.strengths(weight))["bound"].abs()
        if self.scaled:
            slow = bound * math.sqrt(bound.numel() / max(weight.numel(), 1))
            bound = slow + (bound - slow).detach()
        # Not torch.clamp, which halves the gradient of a bound that a weight is at.
        cut = torch.where(weight.abs() > bound, torch.copysign(bound, weight.detach()), weight)
        return cut.to(weight.dtype)

    def problem(self, weight: Tensor) -> str | None:
        """Why a bound has no shape on ``weight``, or None."""
        if isinstance(self.regions, Regions) and self.regions.layout is not None:
            return f"per={self.regions!r} is no dimension of a layer of groups. Give a dimension"
        return super().problem(weight)


@dataclass(frozen=True)
class Temperature(Law):
    r"""Weights of a chip at another temperature: ``sign(w) m (|w| / m)^((T0 + 273) / (T + 273))``, m = max |w|.

    Currents of transistors below threshold follow a power of the programmed weight when the chip
    is warmer (T > T0: small weights grow) or colder (they shrink). The largest weight stays. A
    factor leaves it as it is.

    Args:
        celsius: temperature T at which the chip computes, in degrees Celsius.
        reference: temperature T0 at which it was programmed, in degrees Celsius.
        gradient: ``"straight-through"`` hands the gradient at the changed weight to the clean one
            unchanged; ``"exact"`` differentiates the formula, whose slope at w = 0 is infinite for T > T0:
            weights below a smallest ratio |w| / m, about 1e-38 (float16: 6e-8), are multiplied by its slope there.

    Raises:
        ValueError: for a temperature that is not above absolute zero.

    Example:
        >>> law = Temperature(85.0)
        >>> law.apply(torch.tensor([1.0, 0.5]), law.draw(torch.zeros(2)), 1.0)
        tensor([1.0000, 0.5616])

    Source:
        Klachko, Mahmoodi and Strukov, Improving noise tolerance of mixed-signal neural networks,
        2019, arXiv 1904.01705.
    """

    celsius: float
    _: KW_ONLY
    reference: float = 25.0
    gradient: Gradient = "straight-through"

    __repr__ = law_repr

    def __post_init__(self) -> None:
        for option, value in (("celsius", self.celsius), ("reference", self.reference)):
            if isinstance(value, bool) or not math.isfinite(value) or value <= -_ZERO_CELSIUS:
                raise OptionError(
                    f"Temperature({option}=...) must be above -273 degrees Celsius and finite, got {value!r}."
                )
        check_choice("Temperature", "gradient", self.gradient, ("straight-through", "exact"))

    def draw(self, weight: Tensor) -> None:
        """Nothing is drawn."""

    def apply(self, weight: Tensor, noise: None, factor: float) -> Tensor:
        """``sign(w) m (|w| / m) ** ((T0 + 273) / (T + 273))``."""
        if weight.numel() == 0:
            return weight
        exact = self.gradient == "exact"
        clean = wide(weight if exact else weight.detach())
        tiny = torch.finfo(clean.dtype).tiny
        largest = statistic(clean, "absmax", "tensor").clamp(min=tiny)
        power = (self.reference + _ZERO_CELSIUS) / (self.celsius + _ZERO_CELSIUS)
        # Slopes of float16 end at 65504; they grow towards 0 on a warmer chip.
        least = 2.0**-24 if weight.dtype == torch.float16 and power < 1 else tiny
        changed = (clean * (clean.abs() / largest).clamp(min=least) ** (power - 1.0)).to(weight.dtype)
        return changed if exact else straight_through(weight, changed)
