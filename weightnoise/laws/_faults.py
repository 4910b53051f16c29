"""Cells that fail: stuck weights."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from itertools import accumulate
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from weightnoise._checks import check_choice, check_per
from weightnoise._errors import OptionError
from weightnoise.laws._law import Law, straight_through
from weightnoise.laws._options import law_repr
from weightnoise.laws._rates import check_chip, check_rate, draw_events, event_mask, is_rare, rate_problem
from weightnoise.laws._regions import Per, Tile
from weightnoise.laws._scale import Gradient, extremes, statistic, wide

Levels: TypeAlias = Literal["absmax", "range"] | tuple[float, float]


@dataclass(frozen=True)
class StuckAt(Law):
    r"""Stuck-at faults: of all weights a fraction ``zero`` reads 0, ``high`` the top, ``low`` the bottom level.

    Which weights are stuck is a property of a specimen of the hardware: it is the same in every
    forward, in every process and in every copy, and depends on ``chip`` and on the parameter's name
    alone (4 bytes per weight are kept for it), as long as the same generator draws it: on another kind of
    device, in float64, or with another `engine` a number means another specimen. `hold_noise` puts
    another one in place for its length. The stuck weights of a lower rate are among those of a higher
    one. A factor multiplies the rates.

    Args:
        zero: rate of weights stuck at 0. Rates of 1e-5 to 0.3 are studied; rare ones are exact, down to 1e-12.
        high: rate of weights stuck at the top level.
        low: rate of weights stuck at the bottom level.
        levels: ``"absmax"``: top and bottom are +max |w| and -max |w|; ``"range"``: max w and min w;
            or two numbers ``(bottom, top)``, the limits of the hardware in units of the weight.
        per: what has levels of its own: ``"tensor"``, ``"output"`` or ``"input"`` for each output or input of the
            layer, or the dimension of the channels.
        tile: rows and columns of the crossbars that the weight is cut into, as for `Gaussian`.
        chip: number of the specimen, or None for other faults in each forward.
        gradient: ``"exact"`` gives stuck weights no gradient of their own; ``"straight-through"``
            hands the gradient at the noisy weight to all of them.

    Raises:
        ValueError: for rates that are negative or add up to more than 1, and for levels out of order.

    Example:
        >>> StuckAt(zero=0.1, high=0.01)
        StuckAt(zero=0.1, high=0.01)

    Source:
        Klachko, Mahmoodi and Strukov, 2019, arXiv 1904.01705; Reagen et al., Ares: a framework for
        quantifying the resilience of deep neural networks, 2018.
    """

    zero: float = 0.0
    _: KW_ONLY
    high: float = 0.0
    low: float = 0.0
    levels: Levels = "absmax"
    per: Per = "tensor"
    tile: Tile = None
    chip: int | None = 0
    gradient: Gradient = "exact"

    __repr__ = law_repr
    of_chip = True

    def __post_init__(self) -> None:
        for option in ("zero", "high", "low"):
            check_rate("StuckAt", option, getattr(self, option))
        if self._rate > 1:
            raise OptionError(f"{self!r}: the rates add up to {self._rate:g}, above 1.")
        if isinstance(self.levels, tuple):
            numbers = len(self.levels) == 2 and all(math.isfinite(level) for level in self.levels)
            if not numbers or self.levels[0] > self.levels[1]:
                raise OptionError(f"StuckAt(levels=...) must be (bottom, top) in this order, got {self.levels!r}.")
        else:
            check_choice("StuckAt", "levels", self.levels, ("absmax", "range"))
        check_per("StuckAt", self.per)
        if (self.per != "tensor" or self.tile) and isinstance(self.levels, tuple):
            option = f"per={self.per!r}" if self.tile is None else f"tile={self.tile}"
            raise OptionError(f"StuckAt({option}) has no meaning with fixed levels; drop one of them.")
        check_chip("StuckAt", self.chip)
        check_choice("StuckAt", "gradient", self.gradient, ("exact", "straight-through"))

    @property
    def _rate(self) -> float:
        return self.zero + self.high + self.low

    def draw(self, weight: Tensor) -> Tensor:
        """Numbers in the weight's shape, of which each kind of fault has an interval."""
        return draw_events(weight, weight.shape, self.zero, self.high, self.low)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        """The weight, with the stuck ones at their level."""
        if problem := self.factor_problem(factor):
            raise OptionError(problem)
        clean = weight if self.gradient == "exact" else weight.detach()
        bottom, top = self._levels(clean)
        # The rarest kind first: its interval begins at 0, where the numbers are finest.
        kinds = sorted(((self.zero, 0.0), (self.high, top), (self.low, bottom)), key=lambda kind: kind[0])
        rates, levels = zip(*kinds, strict=True)
        rare, stuck = is_rare(*rates), clean
        # From the last interval to the first, each over the one before.
        for rate, end, level in reversed(list(zip(rates, accumulate(rates), levels, strict=True))):
            if rate:
                stuck = torch.where(event_mask(noise, end, factor, rare=rare), level, stuck)
        stuck = stuck.to(weight.dtype)
        return stuck if self.gradient == "exact" else straight_through(weight, stuck)

    def _levels(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        # In float32: the gradients of all that are stuck are added up there, and their sum leaves float16.
        if isinstance(self.levels, tuple):
            low, high = (weight.new_full((), level) for level in self.levels)
            return low, high
        if self.levels == "range":
            return extremes(wide(weight), self.regions)
        top = statistic(wide(weight), "absmax", self.regions)
        return -top, top

    def factor_problem(self, factor: float) -> str | None:
        """Why the rates cannot be multiplied by ``factor``, or None."""
        return rate_problem(self, self._rate, factor)
