"""Fits of devices: known parameters are found again in simulated measurements, within four standard errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weightnoise as wn
from weightnoise._cli.notation import read_spec

COEFFICIENTS = (0.3, 1.9, -1.1)
READ = 0.2
COUNT = 3000


def devices_of(
    coefficients: tuple[float, ...] = COEFFICIENTS, read: float = READ, reads: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Targets from 5 to 25 (so that none is cut at 0), and several reads of each device."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.linspace(5, 25, COUNT, dtype=torch.float64)
    r = target / 25
    sigma = sum(c * r**power for power, c in enumerate(coefficients))
    programmed = target + sigma * torch.randn(COUNT, generator=generator, dtype=torch.float64)
    return target, programmed + read * torch.randn(reads, COUNT, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("reads", "read"), [(1, 0.0), (2, 0.0), (2, 0.2), (8, 0.2), (8, 1.0)])
def test_the_deviation_of_programming_is_found_apart_from_that_of_reading(reads: int, read: float) -> None:
    target, measured = devices_of(read=read, reads=reads)
    fit = wn.fit_device(target, measured)
    # The coefficients depend on each other, so the deviation itself is compared: its error is that of a variance
    # of 3,000 devices, at the ends of the range three times that of their mean.
    for g in (5.0, 15.0, 25.0):
        true, found = (
            sum(c * (g / 25) ** power for power, c in enumerate(cs)) for cs in (COEFFICIENTS, fit.coefficients)
        )
        share = (true**2 + read**2 / reads) / true**2  # Of the variance, beside what is meant.
        assert abs(found / true - 1) < 4 * 3 * share / (2 * COUNT) ** 0.5
    for own, error, true in zip(fit.coefficients, fit.coefficient_errors, COEFFICIENTS, strict=True):
        assert abs(own - true) < 4 * error
    assert abs(fit.residuals.square().mean() - 1) < 4 * (2 / COUNT) ** 0.5
    if reads == 1:
        assert fit.read is None
        return
    assert fit.read is not None
    assert (fit.read.values - read).abs().max() <= 4 * fit.read.errors.max() + 1e-12
    assert isinstance(fit.law, wn.ProgrammingNoise)
    assert fit.law.programming == fit.coefficients
    assert fit.law.measured is not None
    assert fit.law.measured[:2] == pytest.approx((target.min().item(), target.max().item()), rel=1e-5)


def test_standard_errors_of_coefficients_are_those_of_many_fits() -> None:
    fits = [wn.fit_device(*devices_of(seed=seed)) for seed in range(24)]
    found = torch.tensor([fit.coefficients for fit in fits])
    claimed = torch.tensor([fit.coefficient_errors for fit in fits]).mean(dim=0)
    # Four standard errors of a standard deviation of 24.
    assert ((found.std(dim=0) / claimed - 1).abs() < 4 / (2 * 23) ** 0.5).all()


@pytest.mark.parametrize("few", [True, False])
def test_a_table_is_found(few: bool) -> None:
    target, _ = devices_of()
    if few:
        target = 5 * (target / 5).round()
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(2, COUNT, generator=generator, dtype=torch.float64)
    measured = target + torch.where(target < 12, 0.2, 0.6) * normal[0]
    fit = wn.fit_device(target, measured, curve="table", knots=6)
    assert len(fit.programming.places) == (5 if few else 6)
    outside = (fit.programming.places - 12).abs() > 3
    true = torch.where(fit.programming.places < 12, 0.2, 0.6)
    assert ((fit.programming.values - true).abs() <= 4 * fit.programming.errors)[outside].all()
    assert isinstance(fit.law, wn.ProgrammingNoise)
    assert fit.law.programming == fit.programming.table()


@pytest.mark.parametrize(
    ("part", "read", "text"),
    [
        (0.04, 1.0, r"g_max=25.0\) knows no exponent of drift: of 200 devices none is above 5 % of g_max"),
        (0.5, 0.0, "and read above 0 at each time"),
    ],
)
def test_times_without_a_device_that_drifts_are_refused(part: float, read: float, text: str) -> None:
    target = torch.linspace(0.1, 25.0 * part, 200)
    measured = torch.stack([target, read * 0.9 * target]).unsqueeze(1)
    options = {} if read == 0 else {"g_max": 25.0}
    with pytest.raises(wn.OptionError, match=text) as caught:
        wn.fit_device(target, measured, times=[1.0, 10.0], **options)  # type: ignore[arg-type]
    assert "Leave times out" in str(caught.value)
    assert wn.fit_device(target, measured[0]).drift is None


@pytest.mark.parametrize("slope", [0.0, -0.02])
def test_exponents_of_drift_are_found(slope: float) -> None:
    target, measured = devices_of(read=0.0, reads=1)
    generator = torch.Generator().manual_seed(2)
    times = torch.tensor([10.0, 100.0, 1000.0, 1e5])
    normal = torch.randn(COUNT, generator=generator, dtype=torch.float64)
    nu = 0.05 + slope * (target / 25).log() + 0.01 * normal
    drifted = measured * (times.double() / 10).unsqueeze(1) ** -nu
    noise = torch.randn(4, 16, COUNT, generator=generator, dtype=torch.float64)
    fit = wn.fit_device(target, drifted.unsqueeze(1) + 0.1 * noise, times=times)
    assert fit.drift is not None
    assert abs(fit.drift.mean[0] - 0.05) < 4 * fit.drift.errors[0]
    assert abs(fit.drift.mean[1] - slope) < 4 * fit.drift.errors[1]
    assert abs(fit.drift.std / 0.01 - 1) < 4 / (2 * COUNT) ** 0.5 * 1.5  # Reading adds to the variance.
    law: Any = fit.law
    assert (law.t0, law.measured[2]) == (10.0, pytest.approx(1e5 - 10))
    assert law.drift[:2] == pytest.approx(fit.drift.mean, rel=1e-5)
    assert law.drift_spread == pytest.approx((fit.drift.std, 0.0, fit.drift.std, fit.drift.std), rel=1e-5)


def test_a_law_is_found_again_in_its_own_conductances() -> None:
    # One device for each weight, from the smallest to the largest: the weights are the conductances.
    law = wn.ProgrammingNoise(
        30.0, g_min=10.0, pairs=(), programming=(0.5, 0.5), drift=(0.03, 0.0, 0.03, 0.03),
        drift_spread=(0.004, 0.0, 0.004, 0.004), t0=5.0, read=((10.0, 0.1), (30.0, 0.3)), t_read=None,
    )  # fmt: skip
    torch.manual_seed(0)
    target = torch.linspace(10, 30, COUNT, dtype=torch.float64)
    times = [5.0, 50.0, 5000.0]
    drawn = replace(law, time=1.0).draw(target)
    measured = torch.stack([
        torch.stack([
            replace(law, time=t - 5).apply(target, replace(law, time=1.0).redraw(target, drawn), 1.0)
            for _ in range(6)
        ])
        for t in times
    ])  # fmt: skip
    fit = wn.fit_device(target, measured, times=times, degree=1)
    found: Any = fit.law
    assert (found.g_min, found.g_max, found.t0) == (10.0, 30.0, 5.0)
    for own, error, true in zip(fit.coefficients, fit.coefficient_errors, (0.5, 0.5), strict=True):
        assert abs(own - true) < 4 * error
    assert fit.drift is not None
    assert abs(fit.drift.mean[0] - 0.03) < 4 * fit.drift.errors[0]
    assert abs(fit.drift.std / 0.004 - 1) < 0.15
    assert fit.read is not None
    reading = 0.1 + 0.2 * (fit.read.places - 10) / 20
    # Below 10, where drift has brought some, the table is constant.
    assert ((fit.read.values - reading).abs() < 4.5 * fit.read.errors)[1:].all()
    assert found.shift == ()


def test_a_mean_that_is_off_is_a_shift() -> None:
    target, measured = devices_of()
    fit = wn.fit_device(target, measured - 0.4, degree=2)
    law: Any = fit.law
    shift = sum(c * 0.6**power for power, c in enumerate(law.shift))  # At 15.
    assert abs(shift + 0.4) < 4 * 3 * 1.2 / COUNT**0.5
    for own, error, true in zip(fit.coefficients, fit.coefficient_errors, COEFFICIENTS, strict=True):
        assert abs(own - true) < 4 * error


@pytest.mark.parametrize("curve", ["polynomial", "table"])
@pytest.mark.parametrize("reads", [1, 4])
def test_weights(reads: int, curve: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(40, 100, generator=generator, dtype=torch.float64) * 4 - 2
    sigma = 0.02 + 0.05 * weight.abs() / 2
    chip = weight + sigma * torch.randn(40, 100, generator=generator, dtype=torch.float64)
    measured = chip + 0.01 * torch.randn(reads, 40, 100, generator=generator, dtype=torch.float64)
    fit = wn.fit_device(weight, measured, weights=True, degree=1, curve=curve, knots=20)
    law: Any = fit.law
    if reads > 1:
        frozen, fresh = law
        assert isinstance(frozen, wn.Frozen)
        read = fresh.deviation(weight)
        assert read is not None
        assert abs(read.mean() / 0.01 - 1) < 4 / (2 * 3 * 4000) ** 0.5
        law = frozen.law
    own = law.deviation(weight)
    assert own is not None
    # The largest deviation of a table is that of one group of 200 devices.
    assert ((own / sigma - 1).abs() < (0.35 if curve == "table" else 0.15)).all()
    wn.add_weight_noise(torch.nn.Linear(8, 8), fit.law)


def test_a_fit_is_saved_as_a_configuration(tmp_path: Path) -> None:
    for law in (
        wn.fit_device(*devices_of()),
        wn.fit_device(*devices_of(), weights=True, curve="table"),
    ):
        law.save(tmp_path / "device.json")
        config = json.loads((tmp_path / "device.json").read_text())
        assert wn.spec_from_config(config) == law.law
        assert read_spec(str(tmp_path / "device.json")) == law.law


def test_a_fit_is_drawn() -> None:
    pytest.importorskip("matplotlib")
    target, measured = devices_of()
    both = torch.stack((measured, 0.9 * measured))
    for fit in (
        wn.fit_device(target, both, times=(1.0, 10.0)),
        wn.fit_device(target, measured[0], curve="table"),
    ):
        figure = fit.plot()
        assert len(figure.axes) == (2 if fit.drift is None else 3)
        assert figure.axes[1].get_lines()[0].get_ydata().shape == (COUNT,)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"measured": torch.ones(11)}, r"must have the shape \(reads, \*target.shape\)"),
        ({"measured": torch.ones(2, 3, 12)}, r"must have the shape"),
        ({"times": [1.0, 2.0]}, r"must have the shape"),
        ({"measured": torch.ones(3, 12), "times": [1.0, 2.0]}, "one for each row"),
        ({"measured": torch.ones(2, 12), "times": [2.0, 1.0]}, "ascending"),
        ({"measured": torch.ones(2, 12), "times": [0.0, 1.0]}, "positive"),
        ({"measured": torch.ones(2, 12), "times": [1.0, 2.0], "weights": True}, "with weights=True"),
        ({"target": torch.ones(3), "measured": torch.ones(3)}, "10 are the least"),
        ({"measured": torch.full((12,), float("nan"))}, "not finite"),
        ({"target": -torch.ones(12)}, "give weights=True"),
        ({"target": torch.zeros(12)}, "no conductance above 0"),
        ({"target": torch.ones(12)}, r"g_min=1.0, g_max=1.0\)"),
        ({"curve": "spline"}, r"curve=...\) must be one of"),
        ({"degree": 9}, r"degree=...\) must be a whole number from 0 to 8"),
        ({"knots": 0}, r"knots=...\) must be a whole number"),
        ({"measured": torch.ones(2, 12), "times": [1.0, float("inf")]}, r"times=...\) must be two times or more"),
        ({"measured": torch.ones(2, 12), "times": "soon"}, r"times=...\) must be a tensor or a list"),
        ({"target": "PCM"}, r"target=...\) must be a tensor or a list"),
        ({"measured": [[1.0], [2.0, 3.0]]}, r"measured=...\) must be a tensor or a list"),
        ({"measured": torch.ones(12, dtype=torch.complex64)}, r"measured=...\) must be real numbers"),
    ],
)
def test_options_are_checked(change: dict[str, Any], text: str) -> None:
    options: dict[str, Any] = {"target": torch.linspace(0, 1, 12), "measured": torch.ones(12), **change}
    with pytest.raises(wn.OptionError, match=text):
        wn.fit_device(options.pop("target"), options.pop("measured"), **options)


def test_a_fit_in_inference_mode_is_the_same() -> None:
    target = torch.linspace(0, 25, 50)
    measured = target + torch.randn(3, 50)
    expected = wn.fit_device(target, measured)
    with torch.inference_mode():
        found = wn.fit_device(target.clone(), measured.clone())
    assert found.law == expected.law


@pytest.mark.parametrize("count", [8 * 8, 64 * 64])
@pytest.mark.parametrize("curve", ["polynomial", "table"])
@pytest.mark.parametrize("reads", [1, 4])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_many_devices_of_one_target_are_one_group(share: float, reads: int, curve: Any, count: int) -> None:
    # Most weights of a network are small: half of its devices are empty, more than a group of ten has.
    generator = torch.Generator().manual_seed(0)
    alike = int(share * count)
    target = torch.cat([torch.zeros(alike), torch.linspace(0.5, 25.0, count - alike)]).double()
    errors = torch.randn(reads, count, generator=generator, dtype=torch.float64) * 0.1
    programmed = target + 0.5 * torch.randn(count, generator=generator, dtype=torch.float64)
    fit = wn.fit_device(target, programmed + errors, curve=curve, degree=0)
    assert (fit.programming.places.diff() > 0).all()
    # 4 standard errors of a root mean square, and a tenth for what is fitted.
    expected = (0.25 + (0.01 if reads == 1 else 0.0)) ** 0.5
    assert fit.residuals.isfinite().all()
    assert fit.residuals.square().mean().sqrt().item() == pytest.approx(1.0, abs=4 / (2 * count) ** 0.5 + 0.1)
    pooled = (fit.programming.values.square().mean()).sqrt().item()
    assert pooled == pytest.approx(expected, rel=0.3)
