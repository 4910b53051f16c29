"""Where noise may go: the noise on each parameter, its layer and the model, in closed form and by draws."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.cases import CASES, LAWS
from tests.robustness.test_syntax import SIZES, make


class Conv(nn.Module):
    """A layer that is called twice, strides, groups and padding that is no zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="circular")
        self.down = nn.Conv1d(4, 6, 3, stride=2)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv(x).tanh())
        return self.head(self.down(x.flatten(2)).mean(2))


def subject(kind: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if kind == "conv":
        return Conv(), torch.randn(3, 4, 5, 5)
    return make(kind)


@pytest.mark.parametrize("kind", [*SIZES, "conv"])
@pytest.mark.parametrize(
    "law",
    [wn.Gaussian(0.1, relative_to="absmax", per=0), wn.Gaussian(0.05), wn.LearnedGaussian(0.05)],
    ids=["per row", "plain", "learned"],
)
def test_the_closed_form_is_the_mean_over_draws(kind: Any, law: wn.Noise) -> None:
    model, x = subject(kind)
    found = {row.name: row for row in wn.layer_report(model, law, x, draws=1).rows}
    by_draws = {row.name: row for row in wn.layer_report(model, [law, wn.Clip(low=-9, high=9)], x, draws=100).rows}
    assert found.keys() == by_draws.keys() == wn.noisy_parameters(wn.add_weight_noise(model, law)).keys()
    for name, row in found.items():
        other = by_draws[name]
        assert row.exact
        assert not other.exact
        assert other.strength == pytest.approx(
            row.strength, rel=0.06
        )  # Three standard errors of 12 weights in 100 draws.
        assert other.snr_db == pytest.approx(row.snr_db, abs=0.6)
        if kind != "conv" or name != "conv.weight":  # Its second call takes in the noise of its first one.
            assert other.layer_error == pytest.approx(row.layer_error, rel=0.15)


@pytest.mark.parametrize("size", SIZES)
def test_errors_are_those_of_held_draws(size: int) -> None:
    model, x = make(size)
    law = wn.Uniform(0.1)
    report = wn.layer_report(model, law, x, draws=3, seed=4)
    with torch.no_grad():
        clean, first = model.eval()(x).double(), model[0](x).double()
        wn.add_weight_noise(model, {"0.*": law})
        moved, inner = [], []
        for seed in (
            wn.RobustnessReport((0.0,), {"a": torch.zeros(1, 3)}, seed=4).seed_of(0.0, k) for k in range(3)
        ):
            with wn.hold_noise(model, seed=seed):
                moved.append((model(x).double() - clean).square().sum())
                inner.append((model[0](x).double() - first).square().sum())
    row = next(row for row in report.rows if row.name == "0.weight")
    assert row.model_error == pytest.approx((torch.stack(moved).mean() / clean.square().sum()).sqrt().item())
    assert row.layer_error == pytest.approx((torch.stack(inner).mean() / first.square().sum()).sqrt().item())
    assert row.strength == pytest.approx(0.1 / math.sqrt(3), rel=0.2)
    rms = model[0].weight.square().mean().sqrt().item()
    assert row.snr_db == pytest.approx(20 * math.log10(rms / row.strength))


def test_the_model_comes_back_and_its_own_noise_is_taken() -> None:
    model, x = make()
    carried = wn.add_weight_noise(make()[0], {"2.*": wn.Gaussian(0.1)}, when="training").train()
    with wn.scale_noise(carried, 2.0):
        report = wn.layer_report(carried, None, (x, "label"))
    assert [row.name for row in report.rows] == ["2.weight"]
    assert report.rows[0].strength == pytest.approx(0.2)
    assert carried.training
    assert not any(module._forward_hooks for module in carried.modules())
    assert report.rows == wn.layer_report(model, {"2.*": wn.Gaussian(0.2)}, x).rows[:0] + tuple(
        wn.LayerNoise(**{**vars(row), "law": "Gaussian(std=0.1)"})
        for row in wn.layer_report(model, {"2.*": wn.Gaussian(0.2)}, x).rows
    )


@pytest.mark.parametrize("name", sorted(LAWS))
def test_every_law(name: str) -> None:
    model, x = make()
    law = LAWS[name]() if callable(LAWS[name]) and not hasattr(LAWS[name], "draw") else LAWS[name]
    for row in wn.layer_report(model, law, x, draws=3).rows:
        assert row.model_error >= 0
        assert row.layer_error >= 0
        assert row.strength >= 0


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_model(case: str) -> None:
    report = wn.layer_report(
        CASES[case].model(), wn.Gaussian(0.1, relative_to="absmax"), CASES[case].batch(), draws=2
    )
    errors = [row.model_error for row in report.rows]
    assert errors == sorted(errors, reverse=True)
    assert all(row.model_error > 0 for row in report.rows)


def test_tables_and_a_figure() -> None:
    model, x = make()
    report = wn.layer_report(model, {"0.*": wn.Gaussian(0.1), "2.*": wn.Uniform(0.1)}, x, draws=4, seed=1)
    text = str(report).splitlines()
    assert len(text) == 5
    assert text[0].startswith("| parameter | law | strength | SNR, dB | error of the layer |")
    assert sum("(draws)" in line for line in text) == 1
    assert text[-1].endswith("over 4 draws, seed 1")
    read = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [float(row["model_error"]) for row in read] == [row.model_error for row in report.rows]
    assert report.to_dict()["rows"][0]["name"] == report.rows[0].name
    assert len(report.plot().axes[0].patches) == 4


def test_what_a_layer_report_cannot_do() -> None:
    model, x = make()
    with pytest.raises(wn.OptionError, match="draws"):
        wn.layer_report(model, 0.1, x, draws=0)
    with pytest.raises(wn.NotNoisyError):
        wn.layer_report(model, None, x)
    with pytest.raises(wn.OptionError, match="outputs with a floating-point tensor"):
        wn.layer_report(model, 0.1, x, forward=lambda model, batch: model(batch).argmax())
    assert not wn.has_weight_noise(model)
