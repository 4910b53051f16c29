"""Laws that are another law in a limit: the same numbers make the same noisy weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import weightnoise as wn
from weightnoise.laws import Chain

SIZES = [8, 64]  # Drawn by torch's generator, and by the engine.
S = 0.1


def same(draw: Any, weight: Tensor) -> Any:
    return draw


def signed(draw: Any, weight: Tensor) -> Any:
    """Noise of |w| e as noise of w e."""
    return draw * weight.sign()


def of_one_device(draw: Any, weight: Tensor) -> Any:
    return draw[0][0]


def of_the_full_device(draw: Any, weight: Tensor) -> Any:
    """Of a pair that has no noise where it is empty, the noise of the other one."""
    return torch.where(weight > 0, draw[0][0], -draw[0][1])


def spread(weight: Tensor) -> float:
    return float(weight.max() - weight.min())


BARE: Any = {"drift": (), "read": ()}
# A law, what it is, its draw as that of the other law, and how near it is.
Limit = tuple[Any, Callable[[Tensor], Any], Callable[[Any, Tensor], Any], float]
LIMITS: dict[str, Limit] = {
    "a list of one": (Chain((wn.Gaussian(S),)), lambda w: wn.Gaussian(S), same, 0.0),
    "frozen": (wn.Frozen(wn.Gaussian(S)), lambda w: wn.Gaussian(S), same, 0.0),
    "log-normal": (wn.LogNormal(1e-3), lambda w: wn.Gaussian(1e-3, relative_to="value"), same, 4e-5),  # (s e)^2 w.
    "nothing of it": (wn.LogNormal(0.0), lambda w: wn.Gaussian(0.0), same, 0.0),
    "state": (wn.StateDependentNoise((S,)), lambda w: wn.Gaussian(S, relative_to="absmax"), same, 1e-6),
    "state of the value": (
        wn.StateDependentNoise((0.0, S)), lambda w: wn.Gaussian(S, relative_to="value"), signed, 1e-6,
    ),
    "one device": (
        wn.ProgrammingNoise(101.0, g_min=100.0, pairs=(), programming=(S,), **BARE),
        lambda w: wn.Gaussian(S * spread(w)), of_one_device, 1e-4,
    ),
    "a pair of proportional noise": (
        wn.ProgrammingNoise(programming=(0.0, 25 * S), **BARE),
        lambda w: wn.StateDependentNoise((0.0, S)), of_the_full_device, 1e-6,
    ),
    "a device programmed exactly": (wn.ProgrammingNoise(programming=(), read=()), lambda w: wn.Gaussian(0.0),
                                    of_one_device, 1e-6),
    "read alone": (
        wn.ProgrammingNoise(programming=(), drift=(), read=(S, 0.0, 1.0), t_read=None),
        lambda w: wn.StateDependentNoise((0.0, S)),
        lambda draw, w: torch.where(w > 0, draw[2][0], -draw[2][1]), 1e-6,
    ),
    "relaxation alone": (
        wn.ProgrammingNoise(101.0, g_min=100.0, pairs=(), programming=(), drift=(), read=(), relaxation=(S,)),
        lambda w: wn.Gaussian(S * spread(w)), lambda draw, w: draw[1][0], 1e-4,
    ),
    "stuck at 0": (wn.StuckAt(0.3), lambda w: wn.DropConnect(0.3, rescale=False), same, 0.0),
    "noise of a step": (
        wn.QuantizationNoise(3), lambda w: wn.Uniform(float(w.abs().max()) / 6), same, 1e-6,
    ),
    "learned": (wn.LearnedGaussian(S), lambda w: wn.Gaussian(S), same, 1e-6),
    "variational": (wn.Variational(-2.0), lambda w: wn.Gaussian(math.log1p(math.exp(-2.0))), same, 1e-6),
    "parametric": (wn.ParametricNoise(S), lambda w: wn.Gaussian(S, relative_to="std"), same, 1e-5),
    "dropout": (
        wn.VariationalDropout(S), lambda w: wn.Gaussian(S**0.5, relative_to="value"), same, 1e-6,
    ),
    "shared": (
        wn.Correlated(wn.Gaussian(S), shared=0), lambda w: wn.Gaussian(S),
        lambda draw, w: draw.expand(w.shape), 0.0,
    ),
    "room temperature": (
        wn.Temperature(25.0), lambda w: wn.Gaussian(0.0), lambda draw, w: torch.zeros_like(w), 1e-6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", [1.0, -0.5])
@pytest.mark.parametrize("case", LIMITS)
def test_a_law_is_another_one(case: str, factor: float, size: int) -> None:
    law, other, convert, near = LIMITS[case]
    torch.manual_seed(0)
    weight = torch.randn(size, size)
    drawn = law.draw(weight)
    there = other(weight)
    assert_close(
        law.apply(weight, drawn, factor),
        there.apply(weight, convert(drawn, weight), factor),
        rtol=0,
        atol=near * 4,
    )


@pytest.mark.parametrize("time", [3600.0, 1e7])
def test_drift_without_spread_and_compensated_with_one_number_is_none_of_a_full_device(time: float) -> None:
    law = wn.ProgrammingNoise(
        time=time, programming=(), read=(), drift=(0.05, 0.0, 0.05, 0.05), drift_spread=(0.0, 0.0, 0.0, 0.0)
    )
    weight = torch.randn(8, 8)
    for way in ("global", "tensor"):
        compensated = replace(law, compensate=way)
        assert_close(compensated.apply(weight, compensated.draw(weight), 1.0), weight, rtol=1e-4, atol=1e-5)
    assert_close(law.apply(weight, law.draw(weight), 1.0), weight * (1 + time / 20) ** -0.05, rtol=1e-4, atol=1e-5)
