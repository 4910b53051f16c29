"""Reports put together: each draw once, and nothing that does not belong together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import weightnoise as wn
from tests.robustness.test_syntax import GAUSSIAN, make, run


def same(a: wn.RobustnessReport, b: wn.RobustnessReport) -> bool:
    first, second = a.to_dict(), b.to_dict()
    for one in (first, second):
        one["made_by"].pop("date")
    return first == second


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("size", [8, 64])
def test_parts_in_any_order_are_the_whole(size: int, antithetic: bool) -> None:
    model, x = make(size)
    options: dict[str, Any] = {"law": GAUSSIAN, "antithetic": antithetic}
    whole = run(model, x, draws=10, **options)
    parts = [run(model, x, draws=which, **options) for which in (range(4), range(4, 6), range(6, 10))]
    assert same(parts[0].merge(*parts[1:]), whole)
    assert same(parts[2].merge(parts[0]).merge(parts[1]), whole)
    # A draw counts once.
    assert same(whole.merge(whole), whole)
    assert same(parts[1].merge(whole, parts[0]), whole)


def test_runs_with_other_seeds_are_put_together_and_their_seeds_are_kept() -> None:
    model, x = make()
    first, second = (run(model, x, law=GAUSSIAN, seed=seed, draws=draws) for seed, draws in ((0, 5), (7, 3)))
    both = first.merge(second)
    assert both.values.shape == (3, 8)
    assert torch.equal(both.values[:, :5], first.values)
    assert both.chips == tuple((0, k) for k in range(5)) + tuple((7, k) for k in range(3))
    assert both.seed_of(0.1, 6) == second.seed_of(0.1, 1)
    assert "seed 0, 7, " in str(both)
    assert same(wn.RobustnessReport.from_json(both.to_json()), both)


def test_what_was_not_measured_comes_from_the_other() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    masks = [torch.tensor([mask]) for mask in ([True, False, False], [False, True, False])]
    parts = [wn.RobustnessReport((0.1,), {"a": values}, measured={"a": mask}) for mask in masks]
    both = parts[0].merge(parts[1])
    assert both.measured["a"].tolist() == [[True, True, False]]
    assert both.values[0, :2].tolist() == [1.0, 2.0]
    extra = wn.RobustnessReport((0.1,), {"b": values})
    assert both.merge(extra)["b"].draws.item() == 3


DIFFERENT: dict[str, Any] = {
    "levels": {"levels": (0.0, 0.1, 0.5)},
    "threshold": {"threshold": 1.0},
    "higher_is_better": {"higher_is_better": False},
    "antithetic": {"antithetic": True},
}


@pytest.mark.parametrize("name", [*DIFFERENT, "metric", "law", "model", "torch", "weightnoise", "engine"])
def test_what_does_not_belong_together_is_refused_and_named(name: str) -> None:
    model, x = make()
    report = run(model, x, law=GAUSSIAN, draws=4)
    change = DIFFERENT.get(name, {"made_by": {**report.made_by, name: "other"}})
    with pytest.raises(wn.SpecError, match=rf"The reports differ in {name} \(.* and .*\): their draws are not"):
        report.merge(replace(report, seed=1, chips=(), **change))
    with pytest.raises(wn.SpecError, match="differ in law"):
        report.merge(run(model, x, law=wn.Uniform(1.0), seed=1))


@pytest.mark.parametrize("name", ["date", "python", "threads"])
def test_what_changes_no_draw_may_differ(name: str) -> None:
    model, x = make()
    report = run(model, x, law=GAUSSIAN, draws=4)
    other = replace(report, made_by={**report.made_by, name: "other"})
    assert report.merge(other).made_by[name] == f"{report.made_by[name]}; other"


def test_one_draw_with_two_values_is_refused() -> None:
    one, other = (wn.RobustnessReport((0.1,), {"a": torch.tensor([[1.0, value]])}) for value in (2.0, 3.0))
    with pytest.raises(wn.SpecError, match="Draw 1 of seed 0 has two values for 'a'"):
        one.merge(other)
