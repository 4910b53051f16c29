"""The draws of one curve at one level: their statistics, and how sure these are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from weightnoise._robustness.intervals import quantile_places, share_interval, student_quantile

LEAST_DRAWS = 20  # Before an early stop: of 5 % failing chips, five draws show none three times in four.


@dataclass(frozen=True, eq=False)
class Sample:
    """Values of a metric in draws of noise; NaN is the value of a model that has diverged.

    Attributes:
        values: one for each draw that was measured, in float64.
        units: what is independent of each other: the number of its draw, or of its mirrored pair, for each value.
        higher_is_better: which way the metric is good; NaN is worse than all.
    """

    values: Tensor
    units: Tensor
    higher_is_better: bool = True

    @property
    def count(self) -> int:
        """How many draws there are."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The mean; NaN as soon as one value is."""
        return _mean(self.values).item() if self.count else math.nan

    @property
    def unit_means(self) -> Tensor:
        """The mean of each draw, or mirrored pair."""
        _, places, sizes = self.units.unique(  # type: ignore[no-untyped-call]
            return_inverse=True, return_counts=True
        )
        sums = torch.zeros(len(sizes), dtype=torch.float64, device="cpu").index_add(0, places, self.values)
        return sums if len(sizes) == self.count else sums / sizes

    @property
    def std(self) -> float:
        """The standard deviation from draw to draw, of an unbiased variance; NaN for less than two units."""
        units = self.unit_means
        if len(units) < 2:
            return math.nan
        squares = (self.values - self.mean).square()
        if len(units) == self.count:
            return (squares.sum() / (self.count - 1)).sqrt().item()
        return (squares.mean() + self.sem**2).sqrt().item()

    @property
    def sem(self) -> float:
        """The standard error of the mean, from units; NaN for less than two of them."""
        units = self.unit_means
        if len(units) < 2:
            return math.nan
        squares = (units - _mean(units)).square().sum()
        return (squares / (len(units) * (len(units) - 1))).sqrt().item()

    def margin(self, confidence: float) -> float:
        """Half of Student's interval for the mean."""
        units = len(self.unit_means)
        return self.sem * student_quantile((1 + confidence) / 2, units - 1) if units > 1 else math.nan

    @property
    def _order(self) -> Tensor:
        worst = -math.inf if self.higher_is_better else math.inf
        keys = self.values.nan_to_num(nan=worst, posinf=math.inf, neginf=-math.inf)
        return keys.argsort(stable=True)

    @property
    def ordered(self) -> Tensor:
        """The values from low to high, NaN at the bad end."""
        return self.values[self._order]

    @property
    def worst_place(self) -> int:
        """Where the worst value is, which NaN is."""
        return int(self._order[0 if self.higher_is_better else -1])

    @property
    def worst(self) -> float:
        """The worst value; NaN as soon as one is."""
        return self.values[self.worst_place].item() if self.count else math.nan

    def quantile(self, q: float) -> float:
        """The ``q`` quantile, interpolated between draws."""
        if self.count == 0:
            return math.nan
        place = q * (self.count - 1)
        low, ordered = int(place), self.ordered
        rest = place - low
        return (ordered[low] if rest == 0 else ordered[low].lerp(ordered[low + 1], rest)).item()

    def quantile_interval(self, q: float, confidence: float) -> tuple[float, float]:
        """Order statistics around the ``q`` quantile of all chips; infinite where there are too few draws."""
        units = len(self.unit_means)
        low, high = quantile_places(units, q, confidence)
        ordered, ends = self.ordered, (-math.inf, math.inf)
        # Mirrored draws may be alike, so that a pair counts as one draw, and the outer of its two values bounds.
        first = 2 * low - 2 if self.count == 2 * units else low - 1
        last = 2 * high - 1 if self.count == 2 * units else self.count - 1 - (units - high)
        return (
            ends[0] if low < 1 else ordered[first].item(),
            ends[1] if high > units else ordered[last].item(),
        )

    def share(self, threshold: float) -> float:
        """The share of draws that reach the threshold; NaN does not."""
        reached = self.values >= threshold if self.higher_is_better else self.values <= threshold
        return reached.double().mean().item() if self.count else math.nan

    def share_interval(self, threshold: float, confidence: float) -> tuple[float, float]:
        """The interval of Clopper and Pearson for the share of all chips; a mirrored pair counts as one draw."""
        units = len(self.unit_means)
        return share_interval(self.share(threshold) * units if units else 0.0, units, confidence)

    def is_precise(self, target: float, relative: bool) -> bool:
        """Whether the standard error, with Student's allowance for few draws, is below a target."""
        if self.count < LEAST_DRAWS or not self.sem > 0:  # A spread of 0 is one that has not been seen yet.
            return False
        allowance = self.margin(0.95) / student_quantile(0.975, 10**6)
        return allowance < (target * abs(self.mean) if relative else target)

    def draws_for(self, margin: float, confidence: float) -> float:
        """How many draws make half of Student's interval ``margin``; NaN where no spread has been seen."""
        units = self.unit_means
        spread = self.sem * math.sqrt(len(units))
        if not 0 < spread < math.inf:
            return math.nan
        low, high = 1, 2  # Of units: what is too few, and what is enough.
        while spread * student_quantile((1 + confidence) / 2, high - 1) > margin * math.sqrt(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            enough = spread * student_quantile((1 + confidence) / 2, middle - 1) <= margin * math.sqrt(middle)
            low, high = (low, middle) if enough else (middle, high)
        return float(high * round(self.count / len(units)))


def _mean(values: Tensor) -> Tensor:
    # Rounding may not take it beyond the values: where all are equal it is that value.
    return values.mean().clamp(values.amin(), values.amax())
