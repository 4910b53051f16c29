"""Robustness: held and paired draws, a model that comes back as it was, and a report that keeps its numbers."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import CASES
from weightnoise._robustness import cells
from weightnoise._robustness.progress import clock, progress_bar
from weightnoise._torch import modules
from weightnoise._weights import attach_all

X = torch.linspace(-1, 1, 12).reshape(4, 3)
LEVELS = [0.0, 0.1, 0.3]
LAW = wn.Gaussian(1.0)


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


@torch.no_grad()
def metric(model: nn.Module) -> float:
    return model(X.double()).sum().item()


def run(model: nn.Module | None = None, **options: Any) -> wn.RobustnessReport:
    options = {"levels": LEVELS, "law": LAW, "draws": 5, "progress": False, **options}
    return wn.evaluate_robustness(plain() if model is None else model, options.pop("metric", metric), **options)


def test_each_value_is_that_of_a_held_draw_at_its_level() -> None:
    report, model = run(), plain()
    assert report.values.shape == (3, 5)
    assert report.values[0].unique().item() == metric(model)
    torch.manual_seed(1)
    again = run(levels=[0.3], draws=3)
    assert torch.equal(again.values[0], report.values[2, :3])
    assert report.values[1].unique().numel() == 5


def test_draws_are_paired_over_levels_and_laws() -> None:
    linear = nn.Linear(3, 2, bias=False).double()
    report = run(linear, law=None, laws={"single": LAW, "double": wn.Gaussian(2.0)}, levels=[0.1, 0.2, 0.4])
    clean = metric(linear)
    single, double = report["single"].values - clean, report["double"].values - clean
    assert_close(single[1], 2 * single[0])
    assert_close(double[0], single[1])
    assert_close(double[1], single[2])


def test_the_metrics_own_random_numbers_change_nothing() -> None:
    def draws_too(model: nn.Module) -> float:
        torch.rand(7)
        return metric(model)

    assert torch.equal(run(metric=draws_too).values, run().values)
    state = torch.get_rng_state()
    run()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_noise_on_a_model_is_scaled_by_the_levels_and_stays() -> None:
    model = wn.add_weight_noise(plain(), wn.Gaussian(0.5), when="training").eval()
    report = run(model, law=None, levels=[0.0, 0.2, 0.6])
    assert torch.equal(report.values, run(levels=[0.0, 0.1, 0.3]).values)
    assert wn.noisy_parameters(model) == {"0.weight": wn.Gaussian(0.5), "2.weight": wn.Gaussian(0.5)}
    with pytest.raises(wn.AlreadyNoisyError):
        run(model)
    with pytest.raises(wn.NotNoisyError):
        run(law=None)


def test_activation_noise_counts_too() -> None:
    model = wn.add_activation_noise(plain(), 0.5)
    report = run(model, law=None)
    assert report.values[0].unique().item() == metric(plain())
    assert report.values[2].unique().numel() == 5


def test_a_function_of_the_level_makes_a_spec() -> None:
    report = run(law=lambda level: {"0.*": wn.Gaussian(level)} if level else {"0.*": wn.Clip()})
    only = run(law=LAW, by_parameter=True)
    assert torch.equal(report.values[1:], only["0.weight"].values[1:])


def test_one_parameter_at_a_time() -> None:
    report = run(by_parameter=True, levels=[0.3])
    assert list(report.curves) == ["0.weight", "2.weight"]
    model = wn.add_weight_noise(plain(), {"2.weight": wn.Gaussian(0.3)})
    again = run(model, law=None, levels=[1.0])
    assert_close(report["2.weight"].values, again.values)
    with pytest.raises(wn.SpecError, match="needs a single law"):
        run(by_parameter=True, law=None, laws={"a": LAW, "b": LAW})


def test_metrics_with_several_entries() -> None:
    report = run(metric=lambda model: {"sum": metric(model), "twice": torch.tensor(2 * metric(model))})
    assert list(report.curves) == ["Gaussian(std=1.0) / sum", "Gaussian(std=1.0) / twice"]
    first, second = report.curves.values()
    assert_close(second, 2 * first, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="several curves: 'Gaussian"):
        report.mean  # noqa: B018


def test_antithetic_pairs_cancel_what_is_odd() -> None:
    linear = nn.Linear(3, 2, bias=False).double()
    report = run(linear, antithetic=True, draws=6)
    assert_close(report.mean, torch.full((3,), metric(linear), dtype=torch.float64))
    assert report.std[2] > 0.01


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_the_model_comes_back_as_it_was_after_an_error(error: type[BaseException]) -> None:
    calls = 0

    def breaks(model: nn.Module) -> float:
        nonlocal calls
        calls += 1
        model.train(calls % 2 == 0)
        if calls > 4:
            raise error
        return 1.0

    model = plain()
    model[1].eval()
    modes, classes = [m.training for m in model.modules()], [type(m) for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error):
        run(model, metric=breaks)
    assert [m.training for m in model.modules()] == modes
    assert [type(m) for m in model.modules()] == classes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not wn.has_weight_noise(model)


@pytest.mark.parametrize("case", CASES)
def test_every_model(case: str) -> None:
    model, x = CASES[case].model(), CASES[case].batch()
    with torch.no_grad():
        report = run(model, metric=lambda model: model.eval()(x).double().abs().mean(), levels=[0.0, 0.2], draws=2)
    assert report.values[1].unique().numel() == 2
    assert model.training
    assert not wn.has_weight_noise(model)


def test_a_metric_that_differs_without_noise_is_named() -> None:
    with pytest.warns(wn.NondeterministicMetricWarning, match="differs between two runs without noise"):
        run(metric=lambda model: torch.rand(()).item())
    run(metric=lambda model: math.nan)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"levels": []}, "at least one level"),
        ({"levels": [-0.1]}, r"levels=...\) must be a finite number >= 0"),
        ({"draws": 0}, r"draws=...\) must be a whole number >= 1"),
        ({"until_sem": -1.0}, "until_sem=...\\) must be"),
        ({"law": None, "laws": {}}, "must be a dict of laws by name"),
        ({"law": wn.DropConnect(0.5), "levels": [2.0]}, "would have a rate of 1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], text: str) -> None:
    model = plain()
    with pytest.raises(ValueError, match=text):
        run(model, **options)
    assert not wn.has_weight_noise(model)


@pytest.mark.parametrize("found", [None, {"sum": None}])
def test_a_metric_that_returns_no_number_is_named(found: Any) -> None:
    with pytest.raises(TypeError, match="must return a number or a dict of numbers, not None"):
        run(metric=lambda model: found)


def test_the_fingerprint_is_that_of_the_weights() -> None:
    first, second = plain(), plain()
    assert run(first).made_by["model"] == run(second).made_by["model"]
    assert run(wn.add_weight_noise(second, LAW), law=None).made_by["model"] == run(first).made_by["model"]
    with torch.no_grad():
        first[0].bias.add_(1e-9)
    assert run(first).made_by["model"] != run(plain()).made_by["model"]


def test_plots() -> None:
    figure = run(law=None, laws={"a": LAW, "b": wn.Uniform(1.0)}, threshold=0.0).plot(metric="sum", level="dose")
    axes = figure.axes[0]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["without noise", "a", "b", "threshold"]
    assert (axes.get_ylabel(), axes.get_xlabel(), axes.get_xscale()) == ("sum", "dose", "linear")


def test_bars_have_the_line_of_the_clean_model() -> None:
    report = run(by_parameter=True, levels=[0.3])
    axes: Any = report.plot().axes[0]
    assert len(axes.patches) == 2
    (clean,) = set(report.clean.values())
    assert clean == metric(plain())
    assert set(report.clean) == set(report.curves)
    assert [list(line.get_xdata()) for line in axes.lines if line.get_label() == "without noise"] == [
        [clean, clean]
    ]
    diverged = dataclasses.replace(report, clean=dict.fromkeys(report.curves, math.nan))
    assert "without noise" not in [line.get_label() for line in diverged.plot().axes[0].lines]


def test_a_logarithmic_axis_keeps_the_zero() -> None:
    law: Any = lambda time: wn.ProgrammingNoise(time=time)  # noqa: E731
    with_zero = run(law=law, levels=[0, 25, 86400], draws=2)
    axes = with_zero.plot(log=True).axes[0]
    assert axes.get_xscale() == "symlog"
    assert axes.get_xlim()[0] > -10  # The smallest level above 0 is 25: no decades below 0.
    assert axes.get_xlim()[1] > 86400
    place = axes.transData.transform([(time, 0.0) for time in (0, 25, 250, 86400)])[:, 0]
    assert place[0] < place[1] < place[2] < place[3]  # Each has a place of its own.
    assert place[2] - place[1] > 0.1 * (place[3] - place[0])  # One decade of three and a half.
    without = dataclasses.replace(with_zero, levels=(1.0, 25.0, 86400.0))
    assert without.plot(log=True).axes[0].get_xscale() == "log"
    for wrong in ((1.0, "day", "week"), ("a", "b", "c")):
        with pytest.raises(wn.OptionError, match=r"plot\(log=True\) needs two levels or more, and numbers"):
            dataclasses.replace(with_zero, levels=wrong).plot(log=True)
    with pytest.raises(wn.OptionError, match="needs two levels or more"):
        run(levels=[0.3]).plot(log=True)


def test_the_line_of_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("weightnoise._robustness.progress._QUIET", -1.0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    times = iter([0.0, 60.0, 3000.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    with progress_bar(True) as tick:
        tick.expect(7)
        tick("level 0.1")
        tick.expect(-3)
        tick("level 0.2")
    said = capsys.readouterr().err
    assert said.startswith("\rlevel 0.1 (1 of 7, 6:00 left)\rlevel 0.2 (2 of 4, 50:00 left)")
    times = iter([0.0, 1.0])
    with progress_bar(True) as tick:
        tick("level 0.1")  # The end of a search is not known.
    assert capsys.readouterr().err.startswith("\rlevel 0.1 (1)")
    with progress_bar(False) as tick:
        tick("level 0.1")
    assert capsys.readouterr().err == ""
    assert clock(2 * 3600 + 3 * 60 + 4.4) == "2:03:04"


def test_tqdm_gets_the_total_and_no_colon(monkeypatch: pytest.MonkeyPatch) -> None:
    tqdm = pytest.importorskip("tqdm", reason="tqdm is optional")
    bars: list[Any] = []

    class Bar(tqdm.tqdm):  # type: ignore[misc, name-defined]
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr("tqdm.tqdm", Bar)
    run(levels=[0.0, 0.1, 0.3], draws=4, progress=True)
    assert bars[0].total == bars[0].n == 1 + 4 + 4
    shown = str(bars[0])
    assert shown.startswith("Gaussian(std=1.0) at 0.3, draw 4 of 4 100%|")
    assert "| 9/9 [" in shown
    assert ": " not in shown
    run(levels=[0.1], draws=50, until_sem=1e9, progress=True)  # Draws that are spared are no longer expected.
    assert bars[1].total == bars[1].n == 20
    model = wn.add_weight_noise(nn.Linear(2, 2), 0.1)
    wn.find_level(model, lambda model: 1.0, at_least=0.5, draws=2, highest=0.2)  # Where the end is not known.
    assert str(bars[2]).startswith(f"noise at 0.2, draw 2 of 2 {bars[2].n} draws [")


def test_values_are_independent_of_the_order_of_the_levels() -> None:
    forwards, backwards = run(), run(levels=LEVELS[::-1])
    assert torch.equal(forwards.values, backwards.values.flip(0))


def test_conv_and_batch_statistics_are_left_alone() -> None:
    model = CASES["conv"].model()
    buffers = {name: value.clone() for name, value in model.named_buffers()}

    def evaluate(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model.eval()(CASES["conv"].batch()).mean()

    run(model, metric=evaluate)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_the_model_is_walked_and_the_law_added_once_for_all_draws_and_levels() -> None:
    def calls(**options: Any) -> tuple[int, int]:
        with (
            patch.object(modules, "_visit", wraps=modules._visit) as visit,
            patch.object(cells, "attach_all", wraps=attach_all) as add,
        ):
            run(**options)
        return visit.call_count, add.call_count

    few = calls(draws=2, levels=[0.1, 0.2])
    assert calls(draws=20, levels=[0.1, 0.2]) == few
    more = calls(draws=2, levels=[0.1, 0.2, 0.3, 0.4, 0.5])
    assert more[1] == few[1] == 2  # To look at the plan, and to measure.
    assert more[0] - few[0] == 3 * (few[0] - calls(draws=2, levels=[0.1])[0])  # The same for each level.
