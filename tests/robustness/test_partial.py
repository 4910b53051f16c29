"""What was measured before an exception is not lost with it."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

import weightnoise as wn
from tests.robustness.test_syntax import GAUSSIAN, Total, make, run


class Stops(Total):
    """Raises at one of its calls."""

    def __init__(self, x: torch.Tensor, at: int, error: BaseException) -> None:
        super().__init__(x)
        self.calls, self.at, self.error = 0, at, error

    def __call__(self, model: nn.Module) -> float:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return super().__call__(model)


def report_of(error: BaseException) -> wn.RobustnessReport:
    found: Any = error
    assert isinstance(found.report, wn.RobustnessReport)
    return found.report


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError("mine"), wn.SpecError("mine")], ids=repr)
@pytest.mark.parametrize("size", [8, 64])
def test_an_exception_brings_what_was_measured(size: int, error: BaseException) -> None:
    model, x = make(size)
    whole = run(model, x, law=GAUSSIAN)
    # Two runs without noise, one draw at level 0, three at 0.1, and the first two at 0.3.
    with pytest.raises(type(error)) as caught:
        run(model, x, law=GAUSSIAN, metric=Stops(x, 2 + 1 + 3 + 2 + 1, error))
    report = report_of(caught.value)
    assert report.draws.tolist() == [3, 3, 2]
    (there,) = report.measured.values()
    assert torch.equal(report.values[there], whole.values[there])
    assert report.clean == whole.clean
    assert {**report.made_by, "date": "", "metric": ""} == {**whole.made_by, "date": "", "metric": ""}
    assert not wn.has_weight_noise(model)
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__ == [
            "What was measured before is the attribute `report` of this exception, a RobustnessReport."
        ]
    rest = run(model, x, law=GAUSSIAN)
    assert torch.equal(wn.RobustnessReport.from_json(report.to_json()).merge(report).values[:2], rest.values[:2])


def test_nothing_measured_is_no_report() -> None:
    model, x = make()
    for at in (1, 2, 3):
        with pytest.raises(ZeroDivisionError) as caught:
            run(model, x, law=GAUSSIAN, levels=[0.1], metric=Stops(x, at, ZeroDivisionError()))
        assert not hasattr(caught.value, "report")
    with pytest.raises(wn.NoMatchError) as refused:
        run(model, x, law={"encoder.*": 0.1})
    assert not hasattr(refused.value, "report")


def test_workers_leave_what_they_have_measured() -> None:
    model, x = make()
    whole = run(model, x, law=GAUSSIAN, draws=8)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError) as caught:
        run(model, x, law=GAUSSIAN, draws=8, metric=Stops(x, 15, ZeroDivisionError()), executor=pool)
    report = report_of(caught.value)
    (there,) = report.measured.values()
    assert 8 < there.sum() < 24
    assert torch.equal(report.values[there], whole.values[there])


def test_a_search_that_breaks_off_leaves_its_levels() -> None:
    model, x = make()
    target = Total(x)(model) + 1.0
    options: dict[str, Any] = {"at_most": target, "draws": 4, "progress": False}
    whole = wn.find_level(model, Total(x), GAUSSIAN, **options).report
    with pytest.raises(KeyboardInterrupt) as caught:
        wn.find_level(model, Stops(x, 2 + 1 + 4 + 4 + 3, KeyboardInterrupt()), GAUSSIAN, **options)
    report = report_of(caught.value)
    assert sorted(report.draws.tolist()) == [2, 4, 4, 4]
    for level, row, there in zip(report.levels, report.values, next(iter(report.measured.values())), strict=True):
        assert torch.equal(row[there], whole.values[whole.levels.index(level)][there])
    assert report.threshold == target
