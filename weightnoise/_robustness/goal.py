"""What is asked of a level of noise, and the search for the largest one that gives it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from weightnoise._robustness.report import RobustnessReport
from weightnoise._robustness.sample import Sample

Verdict: TypeAlias = Literal["found", "never", "always"]

DOUBLINGS = 20  # Of the first level, and halvings.


@dataclass(frozen=True)
class Goal:
    """What is asked of a level: a statistic of the draws, and its target.

    Attributes:
        quantile: which one; None for the mean.
        chip_yield: the share of draws that must reach the target; None for another statistic.
    """

    target: float
    higher_is_better: bool
    quantile: float | None = None
    chip_yield: float | None = None

    def value(self, sample: Sample) -> float:
        """The statistic that is compared with the target."""
        if self.chip_yield is not None:
            return sample.share(self.target)
        return sample.mean if self.quantile is None else sample.quantile(self.quantile)

    def interval(self, sample: Sample, confidence: float) -> tuple[float, float]:
        """How sure it is."""
        if self.chip_yield is not None:
            return sample.share_interval(self.target, confidence)
        if self.quantile is not None:
            return sample.quantile_interval(self.quantile, confidence)
        margin = sample.margin(confidence)
        return sample.mean - margin, sample.mean + margin

    def reached(self, value: float) -> bool:
        """Whether a value of the statistic is good enough."""
        if self.chip_yield is not None:
            return value >= self.chip_yield
        return value >= self.target if self.higher_is_better else value <= self.target

    def __str__(self) -> str:
        side = "at least" if self.higher_is_better else "at most"
        if self.chip_yield is not None:
            return f"{100 * self.chip_yield:g} % of the draws are {side} {self.target:g}"
        of = "mean" if self.quantile is None else f"{100 * self.quantile:g} % quantile"
        return f"the {of} is {side} {self.target:g}"


@dataclass(frozen=True, eq=False)
class Tolerance:
    """What `find_level` has found. Prints as a sentence.

    Attributes:
        level: the largest level at which the target was reached; NaN where it is never reached.
        interval: of the level that all chips together have. It holds each level at which the statistic's own
            interval contains the target, so that it covers as that one does; its upper end is infinite where the
            target is always reached.
        verdict: ``"found"``; ``"never"``, if the target is not reached without noise either; ``"always"``, if it
            is reached at every level that was tried.
        goal: what was asked.
        confidence: of the interval.
        report: all that was measured, level by level.
    """

    level: float
    interval: tuple[float, float]
    verdict: Verdict
    goal: Goal
    confidence: float
    report: RobustnessReport

    def __str__(self) -> str:
        tried = f"{len(self.report.levels)} levels of {len(self.report.chips)} draws"
        if self.verdict == "never":
            return f"There is no level at which {self.goal}, not even without noise ({tried})."
        if self.verdict == "always":
            return f"Up to level {self.level:.3g}, the largest that was tried, {self.goal} ({tried})."
        low, high = self.interval
        sure = f"{100 * self.confidence:g} % interval: {low:.3g} to {high:.3g}"
        return f"Up to level {self.level:.3g} {self.goal} ({sure}; {tried})."


def search(
    sample_at: Callable[[float], Sample],
    goal: Goal,
    *,
    first: float,
    highest: float,
    resolution: float,
    confidence: float,
    allowed: Callable[[float], bool] = lambda level: True,
) -> tuple[float, tuple[float, float], Verdict, dict[float, Sample]]:
    """The largest level that reaches the goal, its interval, and all samples, by bracketing and bisection."""
    samples: dict[float, Sample] = {}

    def sample(level: float) -> Sample:
        if level not in samples:
            samples[level] = sample_at(level)
        return samples[level]

    def crossing(holds: Callable[[Sample], bool]) -> tuple[float, float]:
        """The last level at which it holds and the next one at which it does not; infinite if there is none."""
        if not holds(sample(0.0)):
            return math.nan, 0.0
        low, high = 0.0, math.inf
        for level in sorted(samples):
            if not holds(samples[level]):
                high = level
                break
            low = level
        while high == math.inf:
            level = min(max(2 * low, first), highest)
            if low >= highest:
                return low, math.inf
            if allowed(level) and holds(sample(level)):
                low = level
            else:
                high = level
        while high - low > resolution * high and high > first * 0.5**DOUBLINGS:
            middle = (low + high) / 2
            good = allowed(middle) and holds(sample(middle))
            low, high = (middle, high) if good else (low, middle)
        return low, high

    better = 0 if goal.higher_is_better or goal.chip_yield is not None else 1

    def bound(one: Sample, end: int) -> bool:
        return goal.reached(goal.interval(one, confidence)[end])

    level, end = crossing(lambda one: goal.reached(goal.value(one)))
    if math.isnan(level):
        return level, (math.nan, math.nan), "never", samples
    surely, _ = crossing(lambda one: bound(one, better))
    _, possibly = crossing(lambda one: bound(one, 1 - better))
    verdict: Verdict = "always" if end == math.inf else "found"
    return level, (0.0 if math.isnan(surely) else surely, max(possibly, level)), verdict, samples
