"""Quantisation to any number of levels, and to a fixed range."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import weightnoise as wn
from weightnoise._cli.notation import read_spec
from weightnoise.laws import sample

SIZES = [8, 64]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [2, 3, 4, 5, 254, 255, 256])
@pytest.mark.parametrize("options", [{}, {"low": -0.7, "high": 0.4}], ids=["of the weight", "fixed"])
def test_each_weight_reads_the_nearest_of_so_many_levels(size: int, levels: int, options: Any) -> None:
    weight = torch.randn(size, size, dtype=torch.float64)
    low, high = (-0.7, 0.4) if options else (-weight.abs().max().item(), weight.abs().max().item())
    grid = torch.linspace(low, high, levels, dtype=torch.float64)
    distance = (weight.unsqueeze(-1) - grid).abs()
    noisy = sample(wn.Quantize(levels=levels, **options), weight)
    assert_close((noisy - weight).abs(), distance.amin(dim=-1))
    assert_close((noisy.unsqueeze(-1) - grid).abs().amin(dim=-1), torch.zeros_like(weight))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_bits_are_a_number_of_levels(size: int, symmetric: bool) -> None:
    weight = torch.randn(size, size)
    for bits in (2, 4, 8):
        levels = wn.Quantize(levels=2**bits - symmetric, symmetric=symmetric)
        assert torch.equal(sample(levels, weight), sample(wn.Quantize(bits, symmetric=symmetric), weight))


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [4, 5])
def test_stochastic_rounding_is_unbiased_inside_a_range_and_reads_its_ends_outside(size: int, levels: int) -> None:
    weight = torch.linspace(-2.0, 2.0, size * size).reshape(size, size)
    for law, inside in (
        (wn.Quantize(levels=levels, stochastic=True), weight.abs() <= 2),
        (wn.Quantize(levels=levels, low=-1.0, high=1.0, stochastic=True), weight.abs() <= 1),
    ):
        draws = torch.stack([sample(law, weight) for _ in range(2000)])
        step = (4.0 if inside.all() else 2.0) / (levels - 1)
        error = 5 * step / 2 / 2000**0.5  # Five standard errors at the most uncertain place, for 64^2 of them.
        assert bool(((draws.mean(dim=0) - weight).abs()[inside] < error + 1e-5).all())
        outside = draws[:, ~inside]
        assert_close(outside, weight[~inside].sign().expand_as(outside))


@pytest.mark.parametrize("law", [wn.Quantize(levels=254), wn.Quantize(8, low=-1.0, high=1.0)], ids=repr)
def test_configs_gradients_and_activations(law: wn.Quantize) -> None:
    assert wn.spec_from_config(json.loads(json.dumps(wn.spec_to_config(law)))) == law
    assert read_spec(repr(law)) == law
    weight = torch.randn(8, 8, requires_grad=True)
    law.apply(weight, law.draw(weight), 1.0).sum().backward()
    assert torch.equal(weight.grad, torch.ones(8, 8))  # type: ignore[arg-type]
    model = wn.add_activation_noise(nn.Linear(8, 8), law)
    assert model(torch.randn(4, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "takes bits, the length of a code, or levels"),
        ({"bits": 8, "levels": 254}, "takes bits, the length of a code, or levels"),
        ({"levels": 1}, r"levels=...\) must be a whole number from 2 to 65536, got 1"),
        ({"bits": 8, "low": 1.0}, "must be two finite numbers, in this order"),
        ({"bits": 8, "low": 1.0, "high": 0.0}, "must be two finite numbers, in this order"),
        ({"bits": 8, "low": -1.0, "high": 1.0, "per": 0}, "has no meaning with a fixed range"),
        ({"bits": 8, "low": -1.0, "high": 1.0, "tile": (4, 4)}, "has no meaning with a fixed range"),
        ({"levels": 2, "symmetric": False, "stochastic": True}, r"Quantize\(levels=2, stochastic=True\)"),
    ],
)
def test_options_are_checked(options: dict[str, Any], text: str) -> None:
    with pytest.raises(wn.OptionError, match=text):
        wn.Quantize(**options)
