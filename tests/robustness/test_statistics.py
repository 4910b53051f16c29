"""What a report says about its draws, and how sure it is: closed forms, and coverage in simulations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.testing import assert_close

import weightnoise as wn
from weightnoise._robustness.intervals import quantile_places, share_interval, student_quantile
from weightnoise._robustness.sample import Sample

NAN = math.nan


def report(values: Tensor | list[list[float]], **options: Any) -> wn.RobustnessReport:
    rows = torch.as_tensor(values, dtype=torch.float64)
    return wn.RobustnessReport(tuple(0.1 * (place + 1) for place in range(len(rows))), {"a": rows}, **options)


def small() -> wn.RobustnessReport:
    values = torch.tensor([[3.0, 1.0, 2.0, 6.0], [0.0, NAN, 1.0, NAN]], dtype=torch.float64)
    measured = {"a": ~values.isnan()}
    made_by = {"torch": "2", "until_sem": "0.1"}
    return wn.RobustnessReport((0.1, 0.2), {"a": values}, 3, 2.0, made_by=made_by, measured=measured)


def test_statistics_of_a_report() -> None:
    found = small()
    assert found.draws.tolist() == [4, 2]
    assert found.diverged.tolist() == [0, 0]
    assert found.mean.tolist() == [3.0, 0.5]
    assert_close(found.std, torch.tensor([math.sqrt(14 / 3), math.sqrt(0.5)], dtype=torch.float64))
    assert_close(found.sem, found.std / torch.tensor([2.0, math.sqrt(2)], dtype=torch.float64))
    assert found.worst.tolist() == [1.0, 0.0]
    assert found.worst_draws == [1, 0]
    assert found.chip_yield.tolist() == [0.75, 0.0]
    assert found.quantile(0.5).tolist() == [2.5, 0.5]
    lower = wn.RobustnessReport(found.levels, found.curves, 3, 2.0, False, measured=found.measured)
    assert lower.worst.tolist() == [6.0, 1.0]
    assert lower.chip_yield.tolist() == [0.5, 1.0]
    with pytest.raises(ValueError, match="has no threshold"):
        report([[1.0]]).chip_yield  # noqa: B018
    with pytest.raises(ValueError, match=r"Curve 'a' must have the shape \(levels, draws\) = \(1, 4\)"):
        wn.RobustnessReport((0.1,), found.curves)


@pytest.mark.parametrize("higher", [True, False])
def test_nan_is_a_result_and_the_worst_one(higher: bool) -> None:
    found = report([[1.0, NAN, 2.0, 3.0], [1.0, 2.0, 2.0, 3.0]], threshold=2.0, higher_is_better=higher)
    assert found.draws.tolist() == [4, 4]
    assert found.diverged.tolist() == [1, 0]
    assert found.mean.isnan().tolist() == [True, False]
    assert found.sem.isnan().tolist() == [True, False]
    assert found.worst.isnan().tolist() == [True, False]
    assert found.worst_draws[0] == 1
    assert found.chip_yield[0] == 0.5
    assert found.quantile(0.5)[0] == (1.5 if higher else 2.5)  # With NaN below, or above, the others.
    assert math.isnan(found.quantile(0.0 if higher else 1.0)[0])
    assert found.draws_for(0.1).isnan().tolist() == [True, False]
    assert "1 of 4 draws are NaN" in str(found)
    assert len(found.rows()) == 8
    back = wn.RobustnessReport.from_json(found.to_json())
    assert back.diverged.tolist() == [1, 0]


def test_one_draw_has_no_standard_error() -> None:
    found = report([[2.0]])
    assert found.mean.item() == 2
    assert all(math.isnan(one.item()) for one in (found.std, found.sem, *found.interval()[0]))
    assert found.to_markdown().splitlines()[-1] == "| 0.1 | 2 |"
    pair = report([[1.0, 2.0]], antithetic=True)
    assert math.isnan(pair.sem.item())


@pytest.mark.parametrize("value", [463 / 500, 0.1, 1 / 3, math.inf])
def test_equal_draws_have_their_value_as_mean_and_no_spread(value: float) -> None:
    found = report([[value] * 10])
    assert found.mean.item() == value
    if math.isfinite(value):
        assert found.sem.item() == 0
        assert "all 10 draws are equal; up to 26 % of chips may differ" in str(found)  # 1 - 0.05^(1/10)


def test_tables() -> None:
    found = small()
    assert found.to_csv().splitlines()[:3] == ["curve,level,draw,value", "a,0.1,0,3.0", "a,0.1,1,1.0"]
    assert len(found.to_csv().splitlines()) == 7
    assert found.to_markdown().splitlines() == [
        "| level | a |",
        "|---|---|",
        "| 0.1 | 3 ± 1.1 |",
        "| 0.2 | 0.5 ± 0.5 |",
    ]
    assert found.to_markdown("yield", "worst", 0.5, "interval").splitlines() == [
        "| level | a: yield | a: worst | a: 50 % quantile | a: interval |",
        "|---|---|---|---|---|",
        "| 0.1 | 75 % (19.4 to 99.4) | 1 | 2.5 | -0.4374 to 6.437 |",
        "| 0.2 | 0 % (0 to 84.2) | 0 | 0.5 | -5.853 to 6.853 |",
    ]
    text = str(found).splitlines()
    assert text[0] == "| level | a: mean | a: yield | a: worst |"
    assert text[-2] == "a at level 0.2: 2 of 4 draws are measured"
    assert text[-1].endswith("reach 2, 95 %; seed 3, torch 2, until_sem 0.1")
    with pytest.raises(wn.OptionError, match="takes 'mean', 'interval', 'yield', 'worst' or a quantile"):
        found.to_markdown("best")  # type: ignore[arg-type]
    with pytest.raises(wn.OptionError, match="has no threshold"):
        report([[1.0]]).to_markdown("yield")


@pytest.mark.parametrize(
    "make",
    [
        small,
        lambda: report([[1.0, math.inf], [NAN, -math.inf]], antithetic=True, chips=((1, 4), (1, 5))),
        lambda: wn.RobustnessReport(("a", 0.5), {"x": torch.ones(2, 3), "y": torch.zeros(2, 3)}),
    ],
)
def test_reports_come_back_from_json(make: Callable[[], wn.RobustnessReport]) -> None:
    import json

    found = make()
    json.loads(found.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    back = wn.RobustnessReport.from_json(found.to_json())
    assert back.to_dict() == found.to_dict()
    assert back.chips == found.chips
    assert all(torch.equal(back.measured[name], found.measured[name]) for name in found.curves)


# Distributions, against those of SciPy.


def test_quantiles_are_those_of_scipy() -> None:
    for degrees in (1, 2, 19, 1000):
        for p in (0.6, 0.975, 0.9995):
            assert student_quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), rel=1e-9)
    for hits, count in ((0, 10), (1, 20), (10, 10), (470, 1000), (7.5, 10)):
        low, high = share_interval(hits, count, 0.95)
        assert low == pytest.approx(stats.beta.ppf(0.025, hits, count - hits + 1) if hits else 0)
        assert high == pytest.approx(stats.beta.ppf(0.975, hits + 1, count - hits) if hits < count else 1)


# Coverage.

NORMAL = torch.distributions.Normal(0.0, 1.0)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def share(hits: Any) -> float:
    return torch.as_tensor(hits).double().mean().item()


@pytest.mark.parametrize("count", [2, 5, 20])
def test_the_interval_of_the_mean_covers_it(count: int) -> None:
    found = report(normals(2000, count) + 3).interval(0.9)
    # Of 2000, with a standard error of 0.0067.
    assert share((found[:, 0] < 3) & (found[:, 1] > 3)) == pytest.approx(0.9, abs=0.025)


@pytest.mark.parametrize("count", [8, 30])
def test_the_interval_of_the_yield_covers_it_at_least_as_often_as_it_says(count: int) -> None:
    for p in (0.05, 0.3, 0.5, 0.93):
        hits = range(count + 1)
        inside = [low <= p <= high for low, high in (share_interval(k, count, 0.95) for k in hits)]
        assert sum(stats.binom.pmf(k, count, p) for k in hits if inside[k]) >= 0.95


@pytest.mark.parametrize("q", [0.05, 0.5, 0.9])
def test_the_interval_of_a_quantile_covers_it_at_least_as_often_as_it_says(q: float) -> None:
    for count in (5, 20, 200):
        low, high = quantile_places(count, q, 0.95)
        # The number of values below the quantile is binomial: that is exact, whatever the distribution.
        assert stats.binom.cdf(high - 1, count, q) - stats.binom.cdf(low - 1, count, q) >= 0.95
    found = report(normals(2000, 50)).quantile_interval(q)
    truth = NORMAL.icdf(torch.tensor(q)).item()
    assert 0.94 < share((found[:, 0] <= truth) & (truth <= found[:, 1])) < 1
    few = report(normals(1, 5)).quantile_interval(0.05)
    assert few[0, 0] == -math.inf


def mirrored(reports: int, pairs: int, even: float) -> Tensor:
    """Odd and even effects of the noise, in mirrored pairs: normal values of variance 1 + even^2."""
    odd, common = normals(reports, pairs), even * normals(reports, pairs, seed=1)
    return torch.stack([common + odd, common - odd], dim=2).flatten(1)


@pytest.mark.parametrize("even", [0.0, 0.5, 30.0])
def test_intervals_of_mirrored_draws(even: float) -> None:
    found = report(mirrored(600, 20, even), antithetic=True, threshold=0.5)
    low, high = found.interval(0.95).T
    if even:
        assert share((low < 0) & (high > 0)) == pytest.approx(0.95, abs=0.03)
    else:
        assert found.sem.max() < 1e-15
    # Draws of a pair are alike, or opposite: the intervals that take them for one draw cover in both cases.
    values = torch.distributions.Normal(0.0, math.sqrt(1 + even**2))
    low, high = found.yield_interval().T
    reached = 1 - values.cdf(torch.tensor(0.5)).item()
    assert share((low <= reached) & (reached <= high)) > 0.93
    low, high = found.quantile_interval(0.25).T
    quantile = values.icdf(torch.tensor(0.25)).item()
    assert share((low <= quantile) & (quantile <= high)) > 0.93
    # The spread from chip to chip is that of single draws.
    assert found.std.square().mean().item() == pytest.approx(1 + even**2, rel=0.05)


def test_paired_differences_have_an_interval_of_their_own() -> None:
    common, own = normals(1000, 20), normals(1000, 20, seed=1)
    both = wn.RobustnessReport(tuple(range(1000)), {"a": common + 0.2 * own + 0.1, "b": common})
    found = both.compare("a", "b")
    low, high = found.interval().T
    assert share((low < 0.1) & (high > 0.1)) == pytest.approx(0.95, abs=0.03)
    assert (found.sem < both["a"].sem / 2).all()
    assert list(found.curves) == ["a - b"]
    other = wn.RobustnessReport(both.levels, {"a": common[:, :5] + 1}, chips=[(0, k) for k in (3, 4, 5, 30, 31)])
    paired = both.compare("b", other)
    assert_close(paired.values, common[:, 3:6] - common[:, :3] - 1)
    with pytest.raises(wn.SpecError, match="no draw in common"):
        both.compare("b", wn.RobustnessReport(both.levels, {"a": common}, seed=1))
    with pytest.raises(wn.SpecError, match="differ in their levels"):
        both.compare("b", report([[1.0]]))


@pytest.mark.parametrize("antithetic", [False, True])
def test_how_many_draws_a_margin_takes(antithetic: bool) -> None:
    found = report(mirrored(1, 20, 0.5), antithetic=antithetic)
    wanted = int(found.draws_for(0.05).item())
    size = 2 if antithetic else 1
    spread = found.sem.item() * math.sqrt(40 / size)

    def margin(draws: int) -> float:
        return spread * student_quantile(0.975, draws // size - 1) / math.sqrt(draws / size)

    assert margin(wanted) <= 0.05 < margin(wanted - size)
    assert report([[1.0, 1.0]]).draws_for(0.1).isnan().all()
    with pytest.raises(wn.OptionError, match="must be a number above 0"):
        found.draws_for(0.0)


# Early stops.


def stopped(values: Tensor, target: float, relative: bool = False) -> Sample:
    """The draws until a level has been measured precisely enough."""
    for count in range(1, len(values) + 1):
        sample = Sample(values[:count], torch.arange(count))
        if sample.is_precise(target, relative):
            break
    return sample


def test_early_stops_never_stop_at_a_spread_that_was_not_seen_yet() -> None:
    fails = (torch.rand(150, 60, generator=torch.Generator().manual_seed(0)) < 0.05).double()
    ends = [stopped(1 - row, 0.05) for row in fails]
    certain = [one for one in ends if one.sem == 0]
    # One level in 20 shows no failing chip in 60 draws; of the others none says "1 +- 0".
    assert all(one.count == 60 for one in certain)
    assert len(certain) / len(ends) < 0.1
    assert min(one.count for one in ends) >= 20


def test_the_interval_after_an_early_stop_covers_the_mean() -> None:
    ends = [stopped(row, 0.2) for row in normals(400, 60)]
    inside = [abs(one.mean) < one.margin(0.95) for one in ends]
    assert share(inside) > 0.92  # 0.95 for a number of draws that is fixed: to stop on the data costs a little.
    assert 20 < sum(one.count for one in ends) / len(ends) < 40
    assert all(one.sem < 0.2 for one in ends if one.count < 60)


def test_an_early_stop_may_be_relative() -> None:
    values = normals(1, 400)[0]
    relative, absolute = stopped(values + 100, 0.001, True), stopped(values + 100, 0.1)
    assert 20 < relative.count < 400
    assert abs(relative.count - absolute.count) <= 2
    assert stopped(values, 0.001, True).count == 400


def test_a_confidence_is_checked() -> None:
    for wrong in (0, 1, 95, True):
        with pytest.raises(wn.OptionError, match=r"interval\(confidence=...\) must be a number between 0 and 1"):
            small().interval(wrong)
    with pytest.raises(wn.OptionError, match=r"quantile\(q=...\) must be a number from 0 to 1"):
        small().quantile(5)
