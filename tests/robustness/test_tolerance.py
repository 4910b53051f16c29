"""The tolerance number: the largest level that reaches a target, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.robustness.test_syntax import GAUSSIAN, SIZES, Total, make
from weightnoise._robustness.goal import Goal, search
from weightnoise._robustness.sample import Sample

FOUND: Any = {"first": 0.1, "highest": 100.0, "resolution": 0.01, "confidence": 0.95}
Z90 = 1.2815515655446004


def sampled(z: Tensor, sign: float = 1.0) -> Callable[[float], Sample]:
    """A metric that falls with the level, at a speed that is normal over the chips: 1 - level (1 + 0.3 z)."""
    return lambda level: Sample(sign * (1 - level * (1 + 0.3 * z)), torch.arange(len(z)), sign > 0)


# Each with the level that all chips together have, in closed form.
GOALS: list[tuple[Goal, float]] = [
    (Goal(0.5, True), 0.5),
    (Goal(-0.5, False), 0.5),
    (Goal(0.5, True, quantile=0.1), 0.5 / (1 + 0.3 * Z90)),
    (Goal(-0.5, False, quantile=0.9), 0.5 / (1 + 0.3 * Z90)),
    (Goal(0.5, True, chip_yield=0.9), 0.5 / (1 + 0.3 * Z90)),
    (Goal(-0.5, False, chip_yield=0.9), 0.5 / (1 + 0.3 * Z90)),
]


@pytest.mark.parametrize(("goal", "truth"), GOALS, ids=lambda one: str(one))
def test_the_interval_covers_the_level_of_all_chips(goal: Goal, truth: float) -> None:
    generator = torch.Generator().manual_seed(0)
    inside, levels, runs = 0, [], 120
    for _ in range(runs):
        z = torch.randn(30, generator=generator, dtype=torch.float64)
        level, (low, high), verdict, _ = search(sampled(z, 1.0 if goal.higher_is_better else -1.0), goal, **FOUND)
        assert verdict == "found"
        assert low <= level <= high
        inside += low <= truth <= high
        levels.append(level)
    assert inside / runs > 0.95 - 0.05  # Two and a half standard errors of 120 runs.
    assert sum(levels) / runs == pytest.approx(truth, rel=0.05)


def test_the_level_is_the_last_one_that_reaches_the_target() -> None:
    sample = sampled(torch.zeros(5, dtype=torch.float64))
    for truth in (1e-4, 0.03, 0.1, 0.7, 13.0):
        goal = Goal(1 - truth, True)
        level, (low, high), verdict, samples = search(sample, goal, **FOUND)
        assert level <= truth <= level * 1.011
        assert low <= truth <= high
        assert verdict == "found"
        assert len(samples) < 30


@pytest.mark.parametrize(
    ("target", "verdict", "level"), [(1.5, "never", math.nan), (-1e9, "always", 100.0), (1.0, "found", 0.0)]
)
def test_a_target_that_is_never_or_always_reached(target: float, verdict: str, level: float) -> None:
    z = torch.linspace(-1, 1, 5, dtype=torch.float64)
    found, interval, said, samples = search(sampled(z), Goal(target, True), **FOUND)
    assert said == verdict
    assert found == pytest.approx(level, nan_ok=True, abs=1e-6)
    assert samples  # What was computed is kept.
    if verdict == "always":
        assert interval[1] == math.inf


def test_a_model_that_diverges_misses_the_target() -> None:
    def sample(level: float) -> Sample:
        values = torch.full((5,), math.nan if level > 0.3 else 1.0, dtype=torch.float64)
        return Sample(values, torch.arange(5))

    level, _, verdict, _ = search(sample, Goal(0.5, True), **FOUND)
    assert verdict == "found"
    assert level == pytest.approx(0.3, rel=0.011)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["law", "function", "carried"])
def test_the_level_of_a_model(size: int, how: str) -> None:
    model, x = make(size)
    clean = Total(x)(model)

    def distance(model: nn.Module) -> float:
        return abs(Total(x)(model) - clean)

    options: Any = {"at_most": 5.0, "draws": 6, "progress": False, "seed": 3}
    law: Any = GAUSSIAN
    if how == "function":
        law = lambda level: wn.Gaussian(level, relative_to="absmax")  # noqa: E731
    if how == "carried":
        wn.add_weight_noise(model, GAUSSIAN)
        law = None
    found = wn.find_level(model, distance, law, **options)
    assert found.verdict == "found"
    again = wn.evaluate_robustness(
        model, distance, law=law, levels=[found.level], draws=6, seed=3, progress=False, higher_is_better=False
    )
    place = found.report.levels.index(found.level)
    assert torch.equal(again.values[0], found.report.values[place])
    assert again.mean.item() <= 5
    above = min(level for level in found.report.levels if level > found.level)
    assert found.report.mean[found.report.levels.index(above)] > 5
    assert above <= found.level * 1.021
    assert str(found).startswith(f"Up to level {found.level:.3g} the mean is at most 5 (95 % interval: ")
    assert wn.has_weight_noise(model) == (how == "carried")


def test_a_rate_ends_at_one() -> None:
    model, x = make()
    for law in (wn.StuckAt(zero=1.0), lambda level: wn.StuckAt(zero=level)):
        found = wn.find_level(model, Total(x), law, at_least=-1e9, draws=2, progress=False)
        assert 0.97 < found.level <= 1
        assert not wn.has_weight_noise(model)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "needs a target"),
        ({"at_least": 0.5, "at_most": 0.5}, "needs a target"),
        ({"at_least": 0.5, "quantile": 0.5, "chip_yield": 0.5}, "not both"),
        ({"at_least": 0.5, "quantile": 5}, r"quantile=...\) must be a number between 0 and 1"),
        ({"at_least": 0.5, "first": 0}, r"first=...\) must be above 0"),
        ({"at_least": 0.5, "draws": 1}, r"draws=...\) must be a whole number >= 2"),
        ({"at_least": 0.5, "confidence": 95}, "confidence"),
        (
            {"at_least": 0.5, "metric": lambda model: {"a": 1.0}},
            "needs a metric that returns one number, and got 'a'",
        ),
    ],
)
def test_options_of_a_search_are_checked(options: Any, text: str) -> None:
    model, x = make()
    with pytest.raises(wn.OptionError, match=text):
        wn.find_level(model, options.pop("metric", Total(x)), GAUSSIAN, progress=False, **options)
