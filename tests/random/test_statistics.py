"""Statistics in one pass in C: exact where torch is, and of one order for every machine and thread count."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from weightnoise._random import philox as _engine
from weightnoise._random import statistics as _statistics
from weightnoise._random.statistics import DEVIATION, EXTREMES, LARGEST

pytestmark = pytest.mark.skipif(_engine.engine() == "torch", reason="built without a C compiler, or switched off")

LEVELS = range(_engine._LEVEL + 1)  # The instruction sets of this machine.
SHAPES = [(40_000,), (200, 200), (50, 700), (700, 51), (20, 4097), (64, 64, 3, 3), (300, 7, 31)]


def expected(weight: Tensor, what: int, dim: int | None) -> Tensor:
    dims = tuple(one for one in range(weight.ndim) if one != dim)
    if what == LARGEST:
        return weight.abs().amax(dims, keepdim=True)
    if what == EXTREMES:
        return torch.stack([weight.amin(dims, keepdim=True), weight.amax(dims, keepdim=True)])
    return torch.std(weight.double(), dim=dims, correction=0, keepdim=True).float()


def cases() -> list[Any]:
    return [
        pytest.param(shape, dim, id=f"{shape}-{dim}")
        for shape in SHAPES
        for dim in [None, *(range(len(shape)) if len(shape) > 1 else ())]
    ]


@pytest.mark.parametrize(("shape", "dim"), cases())
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_the_statistics_of_torch(shape: tuple[int, ...], dim: int | None, mean: float) -> None:
    weight = torch.randn(shape) + mean
    for what in (LARGEST, EXTREMES, DEVIATION):
        found = _statistics.quick(weight, what, dim)
        assert found is not None
        assert_close(found, expected(weight, what, dim), rtol=3e-7 if what == DEVIATION else 0, atol=0)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dim", [None, 0, 1])
def test_numbers_that_are_none(odd: float, dim: int | None) -> None:
    weight = torch.randn(200, 200)
    weight[17, 130] = odd
    for what in (LARGEST, EXTREMES, DEVIATION):
        assert_close(
            _statistics.quick(weight, what, dim), expected(weight, what, dim), rtol=3e-7, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("value", [0.0, 0.1, -3e30])
@pytest.mark.parametrize("dim", [None, 0, 1])
def test_equal_numbers_have_no_deviation(value: float, dim: int | None) -> None:
    found = _statistics.quick(torch.full((200, 300), value), DEVIATION, dim)
    assert found is not None
    assert not found.any()


@pytest.mark.parametrize(("shape", "dim"), cases())
def test_the_same_bits_at_any_width_and_thread_count(
    shape: tuple[int, ...], dim: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, threads = torch.randn(shape), torch.get_num_threads()
    for what in (LARGEST, EXTREMES, DEVIATION):
        found = []
        for level in LEVELS:
            monkeypatch.setattr(_engine, "_LEVEL", level)
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.append(_statistics.quick(weight, what, dim))
        torch.set_num_threads(threads)
        first = found[0]
        assert first is not None
        assert all(one is not None and torch.equal(one, first) for one in found)


LEFT_TO_TORCH = {
    "small": torch.randn(100, 100),
    "double": torch.randn(200, 200).double(),
    "bfloat16": torch.randn(200, 200).bfloat16(),
    "transposed": torch.randn(300, 200).T,
    "graph": torch.randn(200, 200, requires_grad=True),
    "few rows": torch.randn(15, 4000),
    "negative": torch._neg_view(torch.randn(200, 200)),
}


@pytest.mark.parametrize("weight", LEFT_TO_TORCH.values(), ids=LEFT_TO_TORCH)
def test_what_is_left_to_torch(weight: Tensor) -> None:
    assert _statistics.quick(weight, LARGEST, 1) is None
    if weight.requires_grad:
        with torch.no_grad():
            assert _statistics.quick(weight, LARGEST, 1) is not None
