"""Large weights are made in pieces, and by shorter ways: the same numbers as whole, and the same gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import weightnoise as wn
from weightnoise import devices
from weightnoise.laws import _pieces, _scale
from weightnoise.laws._curves import curve_at
from weightnoise.laws._law import Law
from weightnoise.laws._pieces import straight_through

LAWS: dict[str, Law] = {
    "programming": wn.ProgrammingNoise(),
    "a day": wn.ProgrammingNoise(time=86400.0, stuck=(0.1, 0.1)),
    "by rows": wn.ProgrammingNoise(time=86400.0, per=0),
    "by columns": wn.ProgrammingNoise(per=1),
    "by tiles": wn.ProgrammingNoise(tile=(7, 5)),
    "two pairs": wn.ProgrammingNoise(pairs=(1.0, 0.25)),
    "single devices": devices.RERAM_CMO,
    "tables": replace(devices.SONOS, time=1.5 * 86400.0),
    "one reference": wn.ProgrammingNoise(time=3600.0, compensate="global"),
    "rounded": wn.Quantize(4),
    "rounded at random": wn.Quantize(4, symmetric=False, stochastic=True, per=0),
    "a subset": wn.Quantize(4, subset=0.5, block=3),
    "salt and pepper": wn.SaltAndPepper(0.2, gradient="straight-through"),
}


def applied(law: Law, weight: Tensor, draw: Any, size: int, patch: pytest.MonkeyPatch) -> Tensor:
    patch.setattr(_pieces, "PIECE", size)
    return law.apply(weight, draw, 0.7)


@pytest.mark.parametrize("shape", [(61, 33), (200,), (13, 3, 5, 7)], ids=str)
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_pieces_are_those_of_the_whole(law: Law, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(shape)
    if law.problem(weight):
        pytest.skip("the law does not fit this shape")
    draw = law.draw(weight)
    whole = applied(law, weight, draw, 1 << 30, monkeypatch)
    for size in (1, 16, 40):
        torch.testing.assert_close(applied(law, weight, draw, size, monkeypatch), whole, rtol=1e-5, atol=1e-6)


def test_a_weight_is_cut_only_where_no_graph_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pieces, "PIECE", 8)
    calls = []

    def double(weight: Tensor) -> Tensor:
        calls.append(len(weight))
        return 2.0 * weight

    weight = torch.randn(64, 4)
    torch.testing.assert_close(_pieces.by_pieces(double, weight), 2.0 * weight, rtol=0, atol=0)
    assert sum(calls) == 64
    assert len(calls) > 1
    calls.clear()
    made = _pieces.by_pieces(double, weight.requires_grad_())
    assert calls == [64]
    made.sum().backward()
    assert torch.equal(weight.grad, torch.full_like(weight, 2.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [8, 200])
def test_straight_through_is_the_value_and_the_gradient(size: int) -> None:
    weight = torch.randn(size, size, requires_grad=True)
    value = torch.randn(size, size)
    noisy = straight_through(weight, value)
    assert (weight.numel() >= _pieces.LARGE) == (size == 200)
    torch.testing.assert_close(noisy, value)
    slope = torch.randn(size, size)
    (noisy * slope).sum().backward()
    assert torch.equal(weight.grad, slope)  # type: ignore[arg-type]


def test_straight_through_of_a_large_weight_is_no_view_of_it() -> None:
    weight = torch.randn(200, 200, requires_grad=True)
    clean = weight.detach().clone()
    noisy = straight_through(weight, weight.detach())
    noisy.add_(1.0)
    assert torch.equal(weight, clean)


@pytest.mark.parametrize("mean", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("per", ["tensor", 0, 1])
def test_the_standard_deviation_of_a_large_weight(mean: float, per: Any) -> None:
    weight = mean + torch.randn(256, 200)
    assert weight.numel() >= _scale._LARGE
    dims = {"tensor": (0, 1), 0: (1,), 1: (0,)}[per]
    expected = weight.double().std(dims, correction=0, keepdim=True).float()
    torch.testing.assert_close(_scale.statistic(weight, "std", per), expected, rtol=1e-5, atol=0)


def test_equal_weights_have_no_standard_deviation() -> None:
    assert _scale.statistic(torch.full((256, 200), 0.1), "std", 0).abs().max() < 1e-7


def test_the_largest_weight_of_a_large_weight() -> None:
    weight = torch.randn(256, 200)
    weight[17, 3] = -9.0
    assert _scale.statistic(weight, "absmax", "tensor").tolist() == [[9.0]]
    weight[0, 0] = torch.nan
    assert _scale.statistic(weight, "absmax", "tensor").isnan().all()


TABLES = {
    "equal steps": ((0.0, 1.0), (1.0, -2.0), (2.0, 5.0), (3.0, 0.0)),
    "whole steps": ((0.0, 1.0), (4.0, -2.0), (13.0, 5.0), (95.0, 0.0)),
    "no common step": ((0.0, 1.0), (0.1234567, -2.0), (3.0000001, 5.0), (7.77, 0.0)),
    "far from 0": ((-5.5, 1.0), (-5.25, 3.0), (-4.0, 2.0)),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_table_has_straight_lines_between_its_places(table: tuple[tuple[float, float], ...]) -> None:
    places, values = zip(*table, strict=True)
    g = np.concatenate([np.linspace(places[0] - 1, places[-1] + 1, 501), places])
    found = curve_at(table, torch.tensor(g), 0.0, 1.0, (1.0, 1.0))
    np.testing.assert_allclose(found.numpy(), np.interp(g, places, values), atol=1e-9)
    assert curve_at(table, torch.tensor([torch.nan]), 0.0, 1.0, (1.0, 1.0)).isnan().all()


def test_what_is_no_number_stays_none(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(61, 33)
    weight[5, 5] = torch.nan
    law = wn.ProgrammingNoise(per=0)
    draw = law.draw(weight)
    noisy = applied(law, weight, draw, 16, monkeypatch)
    assert noisy[5].isnan().any()
    assert noisy[6].isfinite().all()


COMPILED: dict[str, Law] = {
    **{name: LAWS[name] for name in ("a day", "tables", "rounded")},
    "salt and pepper": wn.SaltAndPepper(0.2),
    "std": wn.Gaussian(0.1, relative_to="std"),
    "absmax": wn.Gaussian(0.1, relative_to="absmax"),
    "learned": wn.ParametricNoise(0.1),
    "log-normal": wn.LogNormal(0.1),
    "masks": wn.DropConnect(0.2),
}


@pytest.mark.compile
@pytest.mark.parametrize("law", COMPILED.values(), ids=COMPILED)
def test_compiled_code_makes_large_weights_whole(law: Law) -> None:
    model = wn.add_weight_noise(torch.nn.Linear(256, 256), law)
    x = torch.randn(2, 256)
    with wn.hold_noise(model, seed=0):
        expected = model(x)
        found = torch.compile(model, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("law", COMPILED.values(), ids=COMPILED)
def test_large_weights_in_transformations(law: Law) -> None:
    weight, other = torch.randn(2, 256, 200)
    draw = law.draw(weight)

    def of(weight: Tensor) -> Tensor:
        return law.apply(weight, draw, 0.7)

    together = torch.func.vmap(of)(torch.stack([weight, other]))
    torch.testing.assert_close(together, torch.stack([of(weight), of(other)]), rtol=1e-4, atol=1e-5)
