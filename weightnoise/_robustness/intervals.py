"""Confidence intervals from exact distributions: Student's t, the beta and the binomial distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from weightnoise._errors import OptionError


def check_confidence(where: str, confidence: float) -> float:
    """Raise `OptionError` unless ``confidence`` lies between 0 and 1."""
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise OptionError(f"{where}(confidence=...) must be a number between 0 and 1, got {confidence!r}.")
    return float(confidence)


def beta_cdf(x: float, a: float, b: float) -> float:
    """``P(X <= x)`` for X of a beta distribution: the regularised incomplete beta function.

    Source:
        The continued fraction of Abramowitz and Stegun, 26.5.8, by Lentz's method.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # Beyond it the fraction of the mirrored distribution is the one that converges.
        return 1 - beta_cdf(1 - x, b, a)
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    upper, lower = 1.0, 1 / _away(1 - (a + b) * x / (a + 1), tiny)
    total = lower
    for step in range(1, 10_000):
        for factor in (
            step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step)),
            -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1)),
        ):
            lower = 1 / _away(1 + factor * lower, tiny)
            upper = _away(1 + factor / upper, tiny)
            total *= lower * upper
        if abs(lower * upper - 1) < 1e-15:
            break
    return math.exp(log) * total / a


def _away(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny


def _root(rising: Callable[[float], float], target: float) -> float:
    """Where a function that rises on (0, 1) reaches ``target``."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return (low + high) / 2


@lru_cache(maxsize=1000)
def student_quantile(p: float, degrees: int) -> float:
    """The ``p`` quantile of Student's t distribution, for p above one half."""
    # P(T > t) = I_x(degrees / 2, 1 / 2) / 2 with x = degrees / (degrees + t^2).
    x = _root(lambda x: beta_cdf(x, degrees / 2, 0.5), 2 * (1 - p))
    return math.sqrt(degrees * (1 / x - 1))


@lru_cache(maxsize=1000)
def share_interval(hits: float, count: float, confidence: float) -> tuple[float, float]:
    """The interval of Clopper and Pearson for a probability: it covers it at least as often as it says.

    Source:
        Clopper and Pearson, The use of confidence or fiducial limits, Biometrika, 1934.
    """
    if count == 0:
        return 0.0, 1.0
    beyond = (1 - confidence) / 2
    low = _root(lambda x: beta_cdf(x, hits, count - hits + 1), beyond) if hits > 0 else 0.0
    high = _root(lambda x: beta_cdf(x, hits + 1, count - hits), 1 - beyond) if hits < count else 1.0
    return low, high


@lru_cache(maxsize=1000)
def quantile_places(count: int, q: float, confidence: float) -> tuple[int, int]:
    """Which of ``count`` ordered values (the first is 1) bound the ``q`` quantile of their distribution.

    The probability that it lies between the two is at least ``confidence``, whatever the distribution. 0 and
    ``count + 1`` stand for no bound, where there are too few values for one.

    Source:
        David and Nagaraja, Order Statistics, 2003, section 7.1.
    """
    beyond = (1 - confidence) / 2
    below = [_binomial_cdf(number, count, q) for number in range(count + 1)]
    low = sum(probability <= beyond for probability in below)  # P(B <= low - 1) <= beyond
    high = next((number for number in range(1, count + 1) if 1 - below[number - 1] <= beyond), count + 1)
    return low, high


def _binomial_cdf(most: int, count: int, q: float) -> float:
    return 1.0 if most >= count else 1 - beta_cdf(q, most + 1, count - most)
