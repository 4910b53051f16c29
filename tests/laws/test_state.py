"""Noise that depends on the state of a device, against its formula by element and the source's own computation."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn

FIRST = (2.5797410660159494, 0.22419685954327148, -0.00371581208142707, 2.939751381126213e-05)
SECOND = (2.110295720240385, 0.2453487119885723, -0.003054993405157235, 1.2329755395573392e-05)
ANALOG = wn.StateDependentNoise(
    (FIRST, SECOND), breaks=(52.5,), threshold=0.6, g_max=180.0, per="output", tile=(64, 32)
)


def analog_foundation_models(weight: Tensor, normal: Tensor, columns: int) -> Tensor:
    """The evaluation noise of the source, tile by tile and weight by weight; its outputs are rows."""
    noisy = torch.empty_like(weight)
    for part, of, out in zip(
        weight.split(columns, 1), normal.split(columns, 1), noisy.split(columns, 1), strict=True
    ):
        for row, drawn, made in zip(part, of, out, strict=True):
            largest = row.abs().max().item()
            for place, (w, e) in enumerate(zip(row.tolist(), drawn.tolist(), strict=True)):
                g = 180 * abs(w) / largest
                sigma = sum(c * g**power for power, c in enumerate(SECOND if g > 52.5 else FIRST))
                made[place] = 0.0 if g < 0.6 else w + e * sigma * largest / 180
    return noisy


@pytest.mark.parametrize("shape", [(8, 8), (64, 64), (3, 70)])
def test_the_noise_of_the_analog_foundation_models_is_one_value(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(*shape[::-1], bias=False)
    weight = model.weight.detach().clone()
    wn.add_weight_noise(model, ANALOG)
    zeros = wn.add_weight_noise(nn.Linear(*shape[::-1], bias=False), 1.0)
    with torch.no_grad():
        zeros.weight.zero_()
    with wn.hold_noise(model, seed=3), wn.hold_noise(zeros, seed=3):
        noisy, normal = model.weight.detach(), zeros.weight.detach()
    assert_close(noisy, analog_foundation_models(weight, normal, 32), rtol=1e-5, atol=1e-6)
    if weight.numel() > 1000:
        assert bool((noisy == 0).any())


@pytest.mark.parametrize("relative_to", ["absmax", "std", "rms"])
@pytest.mark.parametrize("factor", [1.0, -0.5])
@pytest.mark.parametrize("gradient", ["straight-through", "exact"])
def test_formula(relative_to: Any, factor: float, gradient: Any) -> None:
    weight = torch.randn(6, 7, dtype=torch.float64)
    law = wn.StateDependentNoise((0.3, 0.5, -0.2), g_max=2.0, relative_to=relative_to, gradient=gradient)
    noise = law.draw(weight)
    unit = wn.Gaussian(1.0, relative_to=relative_to).deviation(weight)
    g = 2.0 * weight.abs() / unit
    sigma = (0.3 + 0.5 * g - 0.2 * g * g).clamp(min=0.0)
    assert_close(law.apply(weight, noise, factor), weight + factor * unit * sigma / 2.0 * noise)


def test_empty_devices_have_no_noise() -> None:
    weight = torch.tensor([1.0, 0.0, 0.3, -0.05])
    noise = torch.ones(4)
    spared = wn.StateDependentNoise((0.1,), threshold=0.0)
    assert_close(spared.apply(weight, noise, 1.0), torch.tensor([1.1, 0.0, 0.4, 0.05]))
    cut = wn.StateDependentNoise((0.1,), threshold=0.1)
    assert_close(cut.apply(weight, noise, 1.0), torch.tensor([1.1, 0.0, 0.4, 0.0]))
    assert_close(cut.apply(weight, noise, 0.0), torch.tensor([1.0, 0.0, 0.3, 0.0]))
    assert torch.equal(wn.StateDependentNoise((0.1,)).apply(torch.zeros(3), torch.ones(3), 1.0), torch.zeros(3))


def test_estimators_take_what_is_gaussian_and_linear() -> None:
    x = torch.randn(4, 6)
    for law in (wn.StateDependentNoise((0.1, 0.2)), wn.StateDependentNoise((0.1, 0.2), threshold=0.0)):
        for estimator in ("local", "flipout"):
            wn.add_weight_noise(nn.Linear(6, 5), law, estimator=cast("Any", estimator))(x)
    for estimator in ("local", "flipout"):
        with pytest.raises(wn.UnsupportedParameterError):
            wn.add_weight_noise(
                nn.Linear(6, 5), wn.StateDependentNoise((0.1,), threshold=0.1), estimator=cast("Any", estimator)
            )


def test_configs_and_the_command_line() -> None:
    from weightnoise._cli.notation import read_spec

    assert wn.spec_from_config(json.loads(json.dumps(wn.spec_to_config(ANALOG)))) == ANALOG
    assert read_spec(repr(ANALOG)) == ANALOG


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"coefficients": ()}, r"coefficients=...\) must be a tuple of finite numbers"),
        ({"coefficients": 0.1}, r"coefficients=...\) must be a tuple of finite numbers"),
        ({"coefficients": (0.1, float("nan"))}, r"coefficients=...\) must be a tuple of finite numbers"),
        ({"coefficients": ((0.1,), ())}, r"coefficients=...\) must be a tuple of finite numbers"),
        ({"coefficients": ((0.1,), (0.2,))}, r"breaks=...\) must be 1 numbers in ascending order"),
        ({"coefficients": (0.1,), "breaks": (0.3,)}, r"breaks=...\) must be 0 numbers"),
        (
            {"coefficients": ((0.1,), (0.2,), (0.3,)), "breaks": (2, 1)},
            r"breaks=...\) must be 2 numbers in",
        ),
        ({"coefficients": (0.1,), "threshold": -1}, r"threshold=...\) must be a finite number >= 0"),
        ({"coefficients": (0.1,), "g_max": 0}, r"g_max=...\) must be positive"),
        ({"coefficients": (0.1,), "relative_to": "value"}, r"relative_to=...\) must be one of"),
    ],
)
def test_options_are_checked(options: dict[str, Any], text: str) -> None:
    with pytest.raises(wn.OptionError, match=text):
        wn.StateDependentNoise(**options)
