"""Measured devices: each law against its source's formulas, device by device; pairs, faults, compensation."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn
from weightnoise import devices
from weightnoise._cli.notation import read_spec
from weightnoise.laws._curves import curve_at

DAY = 86400.0
SIZES = [8, 64]  # Drawn by torch's generator, and by the engine.
Cell = Callable[[float, float, float, float], float]  # Target and three normals to a conductance.


def polynomial(coefficients: list[float], x: float) -> float:
    return sum(c * x**power for power, c in enumerate(coefficients))


def pcm_joshi(g: float, e1: float, e2: float, e3: float) -> float:
    return max(0.0, g + (-0.00178767 * g * g + 0.07585724 * g + 0.28638599) * e1)


def reram_wan(day: int) -> Cell:
    coefficients = (
        [0.348, 16.030, -43.853, 45.393, -16.815],
        [0.701, 22.086, -50.773, 47.095, -16.458],
        [0.782, 20.274, -43.507, 37.062, -11.934],
    )[day]
    return lambda g, e1, e2, e3: max(0.0, g + max(0.0, polynomial(coefficients, g / 40)) * e1)


def reram_milo(g: float, e1: float, e2: float, e3: float) -> float:
    return g + (4.782321 - 0.009107 * g) * e1


def reram_cmo(t: float) -> Cell:
    def cell(g: float, e1: float, e2: float, e3: float) -> float:
        drifted = g + (0.00081107 + 0.00106879 * g) * e1 - 0.08900206 * math.log(t)
        drifted += (0.04201137 * math.log(t) + 0.41183342) * e2
        growth = math.sqrt(math.log((t + 1e-6) / 2e-6))
        return min(max(drifted + 0.0277316483 * math.log10(max(drifted, 1.0)) * growth * e3, 9.0), 88.199997)

    return cell


SONOS_FITS = {0: (19.88665, 176.3115), 1: (25.59102, 186.85544), 5: (34.57909, 207.34309)}
SONOS_DRIFT = {
    0: [0.0],
    1: [6.83650e-01, 6.51250e-03, -4.03163e-04, 3.37944e-06, -1.87435e-08, 5.88902e-11, -1.07685e-13, 1.17751e-16,
        -7.60016e-20, 2.67255e-23, -3.94954e-27],
    5: [1.15294e00, 1.03149e-02, -6.05199e-05, 1.76086e-08, -6.46690e-09, 3.39044e-11, -7.53872e-14, 8.98185e-17,
        -6.00346e-20, 2.12615e-23, -3.11099e-27],
}  # fmt: skip


def sonos(day: int) -> Cell:
    height, scale = SONOS_FITS[day]

    def cell(g: float, e1: float, e2: float, e3: float) -> float:
        g += polynomial(SONOS_DRIFT[day], min(g, 1400.0))
        g = max(0.0, g + max(0.0, height * (1 - math.exp(-g / scale))) * e1)
        return max(0.0, g + 12.58037 * (1 - math.exp(-g / 215.36557)) * e3)

    return cell


# A law, its source, how near a conductance of it is, and whether it has one device for each weight.
CASES: dict[str, tuple[wn.ProgrammingNoise, Cell, float]] = {
    "joshi": (devices.PCM_JOSHI, pcm_joshi, 1e-4),
    "wan": (devices.RERAM_WAN, reram_wan(0), 1e-4),
    "wan, a day": (replace(devices.RERAM_WAN, time=DAY), reram_wan(1), 1e-4),
    "wan, two days": (replace(devices.RERAM_WAN, time=2 * DAY), reram_wan(2), 1e-4),
    "milo": (devices.RERAM_MILO, reram_milo, 1e-3),
    "cmo": (devices.RERAM_CMO, reram_cmo(1.0), 0.02),  # The read noise is a table, 2 % of 0.15 off.
    "cmo, an hour": (replace(devices.RERAM_CMO, time=3599.0), reram_cmo(3600.0), 0.02),
    "cmo, a year": (replace(devices.RERAM_CMO, time=3.15e7), reram_cmo(3.15e7), 0.02),
    "sonos": (devices.SONOS, sonos(0), 1.0),  # Tables, and numbers of up to 4 standard deviations.
    "sonos, a day": (replace(devices.SONOS, time=DAY), sonos(1), 1.6),
    "sonos, five days": (replace(devices.SONOS, time=5 * DAY), sonos(5), 1.6),
}


def by_device(law: wn.ProgrammingNoise, cell: Cell, weight: Tensor, noise: Any) -> Tensor:
    """The noisy weight, device by device, in Python's numbers."""
    span, found = law.g_max - law.g_min, []
    numbers = [part.flatten(1).tolist() if part is not None else None for part in noise]
    flat = weight.flatten().tolist()
    largest, smallest = max(map(abs, flat)), min(flat)
    for place, w in enumerate(flat):
        e = [[0.0 if part is None else part[device][place] for part in numbers] for device in range(len(noise[0]))]
        if law.pairs:
            parts = [law.g_min + span * max(sign * w, 0.0) / largest for sign in (1, -1)]
            plus, minus = (cell(g, *own) for g, own in zip(parts, e, strict=True))
            found.append((plus - minus) * largest / span)
        else:
            unit = (max(flat) - smallest) / span
            found.append(smallest + (cell(law.g_min + (w - smallest) / unit, *e[0]) - law.g_min) * unit)
    return torch.tensor(found, dtype=weight.dtype).reshape(weight.shape)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_a_device_is_its_source(case: str, size: int) -> None:
    law, cell, near = CASES[case]
    torch.manual_seed(0)
    weight = torch.randn(size, size)
    noise = law.draw(weight)
    extent = weight.abs().max() if law.pairs else weight.max() - weight.min()
    unit = extent.item() / (law.g_max - law.g_min)
    assert_close(law.apply(weight, noise, 1.0), by_device(law, cell, weight, noise), rtol=0, atol=2 * near * unit)
    assert_close(law.apply(weight, noise, 0.0), weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", devices.__all__)
def test_the_parts_of_a_device_can_be_left_out(name: str) -> None:
    law = replace(getattr(devices, name), time=0.0)
    weight = torch.randn(6, 7)
    silent = replace(law, programming=(), read=(), drift=(), relaxation=(), shift=())
    assert_close(silent.apply(weight, silent.draw(weight), 1.0), weight)
    both = law if name in ("PCM_JOSHI", "RERAM_MILO") else replace(law, time=law.t0)
    no_read, no_programming = replace(both, read=()), replace(both, programming=())
    assert no_read.draw(weight)[2] is None
    assert (both.draw(weight)[2] is None) == (not law.read)
    for one in (no_read, no_programming):
        assert torch.isfinite(one.apply(weight, one.draw(weight), 1.0)).all()


@pytest.mark.parametrize("pairs", [(1.0,), (1.0, 1.0), (1.0, 4.0), (8.0, 1.0), ()])
@pytest.mark.parametrize("g_min", [0.0, 5.0])
@pytest.mark.parametrize("per", ["tensor", 0])
def test_conductances_of_no_error_are_the_weight(per: Any, g_min: float, pairs: tuple[float, ...]) -> None:
    weight = torch.randn(5, 6, dtype=torch.float64)
    law = wn.ProgrammingNoise(g_min=g_min, pairs=pairs, per=per, programming=(), read=())
    noise = law.draw(weight)
    assert noise[0].shape == (2 * len(pairs) or 1, 5, 6)
    assert_close(law.apply(weight, noise, 1.0), weight)


def test_the_first_pair_is_filled_first_and_counts_least() -> None:
    # g_max 10, pairs of 1 and 3: a weight of the largest 4 is 40 units; one of 0.5 is 5 units in the first pair.
    law = wn.ProgrammingNoise(10.0, pairs=(1.0, 3.0), programming=(1.0,), read=(), drift=())
    weight = torch.tensor([4.0, -0.5, 2.5])
    none = torch.zeros(4, 3)
    assert_close(law.apply(weight, (none, None, None), 1.0), weight)
    for device, moved in enumerate(([0.1, 0.0, 0.1], [0.0, -0.1, 0.0], [0.3, 0.0, 0.3], [0.0, 0.0, 0.0])):
        up = none.clone()
        up[device] = -1.0  # The other devices are empty and cannot go below 0.
        expected = weight - torch.tensor(moved)
        if device == 1:
            expected = weight + torch.tensor([0.0, 0.1, 0.0])
        assert_close(law.apply(weight, (up, None, None), 1.0), expected)


@pytest.mark.parametrize("size", SIZES)
def test_single_devices_are_stuck_at_their_rates_and_belong_to_the_chip(size: int) -> None:
    law = wn.ProgrammingNoise(programming=(), read=(), stuck=(0.1, 0.2), chip=1)
    model = nn.Linear(size, size, bias=False)
    nn.init.constant_(model.weight, 0.5)
    wn.add_weight_noise(model, law)
    x = torch.eye(size)
    noisy = model(x)
    assert torch.equal(noisy, model(x))
    # g+ is right at 0.7, 0 at 0.1, full at 0.2, and so is full already; g- is full at 0.2 and right, at 0, else.
    levels = {0.0: 0.9 * 0.2 + 0.1 * 0.8, 0.5: 0.9 * 0.8, -0.5: 0.1 * 0.2}
    for level, rate in levels.items():
        found = (noisy - level).abs() < 1e-6
        assert abs(found.float().mean().item() - rate) < 4 * (rate * (1 - rate)) ** 0.5 / size
    with wn.scale_noise(model, 0.0):
        assert_close(model(x), torch.full((size, size), 0.5))
    with pytest.raises(ValueError, match="above 1"):
        wn.scale_noise(model, 4.0).__enter__()


@pytest.mark.parametrize("layer", [nn.Linear(6, 4, bias=False), nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False)])
@pytest.mark.parametrize("compensate", ["tensor", "output", "global"])
def test_drift_is_compensated_where_it_says(compensate: Any, layer: Any) -> None:
    law = wn.ProgrammingNoise(time=DAY, programming=(), read=(), compensate=compensate)
    layer.weight = nn.Parameter(torch.randn_like(layer.weight) * torch.rand(layer.weight.shape[0]).reshape(
        -1, *[1] * (layer.weight.ndim - 1)
    ))  # fmt: skip
    wn.add_weight_noise(layer, law)
    clean = layer._parameters["weight"].detach()
    with torch.no_grad(), wn.hold_noise(layer, seed=0):
        noisy = layer.weight.clone()
    wn.remove_weight_noise(layer)
    if clean.ndim == 4:  # Groups: inputs first, outputs of each group second.
        clean, noisy = (one.reshape(2, 3, 2, 9).permute(0, 2, 1, 3).reshape(4, -1) for one in (clean, noisy))
    of_each, of_all = noisy.abs().sum(1) / clean.abs().sum(1), noisy.abs().sum() / clean.abs().sum()
    if compensate == "output":
        assert_close(of_each, torch.ones(4))
    elif compensate == "tensor":
        assert_close(of_all, torch.ones(()))
        assert not torch.allclose(of_each, torch.ones(4), atol=1e-4)
    else:
        assert not torch.allclose(of_all, torch.ones(()), atol=1e-4)
        full, whole = torch.ones(1), torch.zeros(2, 1)  # A full device of the mean drift comes back.
        assert_close(law.apply(full, (whole, whole, None), 1.0), full)


@pytest.mark.parametrize("factor", [1.0, 0.5, -1.0])
def test_a_shift_is_compensated_too(factor: float) -> None:
    law = replace(devices.SONOS, time=3 * DAY, programming=(), read=())
    weight = torch.linspace(0.2, 1.0, 9)
    drifted, *others = (
        replace(law, compensate=way).apply(weight, law.draw(weight), factor) for way in (False, "tensor", "global")
    )
    assert drifted.sum() < 0.99 * weight.sum() if abs(factor) == 1 else drifted.sum() < weight.sum()
    # The other device of each pair is empty, and gains 1.2 nA of 1600.
    assert_close(others[0].sum(), weight.sum(), rtol=3e-3, atol=0)
    assert_close(others[1][-1], weight[-1], rtol=1e-3, atol=0)


def test_what_lies_beyond_the_measurements_warns_once() -> None:
    for options, text in (
        ({"time": 7 * DAY + 1}, "time=604801"),
        ({"g_max": 1601.5}, "g_max=1601.5"),
    ):
        with pytest.warns(wn.DeviceRangeWarning, match=text) as caught:
            replace(devices.SONOS, **options)  # type: ignore[arg-type]
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            replace(devices.SONOS, **options)  # type: ignore[arg-type]
    with pytest.warns(wn.DeviceRangeWarning, match="g_min=49"):
        replace(devices.RERAM_MILO, g_min=49.0)
    with pytest.warns(wn.DeviceRangeWarning, match="time=3.5"):
        replace(devices.PCM_JOSHI, time=3.5)


@pytest.mark.parametrize(
    ("curve", "g", "time", "value"),
    [
        ((), 3.0, 0.0, 0.0),
        ((1.0, 2.0, 4.0), 5.0, 9.0, 1.0 + 2.0 * 0.5 + 4.0 * 0.25),  # A polynomial of g / g_max.
        (((0.0, 1.0), (4.0, 3.0), (8.0, 3.0)), 1.0, 0.0, 1.5),
        (((0.0, 1.0), (4.0, 3.0), (8.0, 3.0)), 99.0, 0.0, 3.0),
        (((2.0, 1.0), (4.0, 3.0)), 0.0, 0.0, 1.0),
        (((7.0, 1.0),), 0.0, 0.0, 1.0),
        (((0.0, (1.0,)), (3.0, (3.0,))), 1.0, 1.0, 2.0),  # ln 2 lies half-way from ln 1 to ln 4.
        (((0.0, (1.0,)), (3.0, (3.0,))), 1.0, 15.0, 5.0),
        (((1.0, (1.0,)), (3.0, (3.0,))), 1.0, 0.0, 1.0),
        (((0.0, ((0.0, 1.0), (2.0, 3.0))), (3.0, (0.0,))), 1.0, 1.0, 1.0),
    ],
)
def test_curves(curve: Any, g: float, time: float, value: float) -> None:
    at = torch.tensor([g], dtype=torch.float64, requires_grad=True)
    found = curve_at(curve, at, time, 1.0, (10.0, 1.0))
    assert found.item() == pytest.approx(value)


def test_a_table_of_a_polynomial_is_the_polynomial() -> None:
    weight = torch.randn(7, 9, dtype=torch.float64)
    usual = wn.ProgrammingNoise()
    table = tuple((g / 10, 0.26348 + 1.9650 * g / 250 - 1.1731 * (g / 250) ** 2) for g in range(251))
    noise = usual.draw(weight)
    assert_close(
        replace(usual, programming=table).apply(weight, noise, 1.0),
        usual.apply(weight, noise, 1.0),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", devices.__all__)
def test_configs_and_the_command_line(name: str) -> None:
    law = replace(getattr(devices, name), chip=3)
    assert wn.spec_from_config(json.loads(json.dumps(wn.spec_to_config(law)))) == law
    assert wn.spec_from_config({"type": f"devices.{name}", "chip": 3}) == law
    assert read_spec(repr(law)) == law
    named = f"devices.{name}"
    assert repr(law) == ("ProgrammingNoise(chip=3)" if name == "PCM" else f"replace({named}, chip=3)")
    assert repr(getattr(devices, name)) == ("ProgrammingNoise()" if name == "PCM" else named)
    assert read_spec(f"{name}(chip=3)") == read_spec(f"devices.{name}(chip=3)") == law
    assert read_spec(name) == read_spec(f"devices.{name}") == getattr(devices, name)
    assert read_spec(f"[Clip(2.5), {name}]")[1] == getattr(devices, name)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"g_min": 25.0}, r"g_min=25.0\) must be less than g_max"),
        ({"pairs": (1.0, 0.0)}, r"pairs=...\) must be a tuple of positive numbers"),
        ({"programming": ((1.0, 2.0), (1.0, 3.0))}, r"programming=...\) .* ascending conductances"),
        ({"shift": ((0.0, (0.0,)), (0.0, (1.0,)))}, r"shift=...\) .* ascending times"),
        ({"relaxation": (0.1,)}, r"give drift=\(\) with it"),
        ({"read": (0.1, 0.2)}, r"read=...\) must be a tuple of 3 finite numbers"),
        ({"bounds": (3.0, 1.0)}, r"bounds=...\) must be \(least, largest or None\)"),
        ({"stuck": (0.6, 0.6)}, "add up to more than 1"),
        ({"stuck": (0.6,)}, r"stuck=...\) must be 2 numbers"),
        ({"measured": (0.0, 1.0)}, r"measured=...\) must be 3 numbers"),
        ({"t_read": 0.0}, r"t_read=...\) must be positive"),
        ({"t_read": 100.0}, r"t_read=100.0\) must be at most time \+ t0, 20.0"),
        ({"compensate": "column"}, r"compensate=...\) must be one of"),
    ],
)
def test_options_are_checked(options: dict[str, Any], text: str) -> None:
    with pytest.raises(wn.OptionError, match=text):
        wn.ProgrammingNoise(**options)


def test_compensation_of_outputs_needs_a_known_layout() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3))

    with pytest.raises(wn.UnsupportedParameterError, match="compensate='output' needs a layer"):
        wn.add_weight_noise(Own(), wn.ProgrammingNoise(time=1.0, compensate="output"))
