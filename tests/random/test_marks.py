"""The marks of a tensor see its changes, and depend on its numbers alone; with the library in C, and without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from weightnoise._random import philox as _engine
from weightnoise._random.marks import marks_of

built = pytest.mark.skipif(_engine._LIBRARY is None, reason="built without a C compiler, or switched off")
ways = pytest.mark.parametrize("by_c", [pytest.param(True, marks=built, id="C"), pytest.param(False, id="torch")])


@pytest.fixture(autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.callspec.params["by_c"]:
        monkeypatch.setattr(_engine, "_LIBRARY", None)


def differ(one: Tensor, other: Tensor) -> bool:
    return not torch.equal(marks_of(one), marks_of(other))


@ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (5, 7), (16, 3, 3, 3), (64, 64), (129, 257), (300, 301)], ids=str)
def test_every_change_is_seen(shape: tuple[int, ...], dtype: torch.dtype, by_c: bool) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(shape, dtype=dtype)
    assert not differ(tensor, tensor.clone())
    for place in {0, tensor.numel() // 2, tensor.numel() - 1}:
        other = tensor.clone()
        other.view(-1)[place] = other.view(-1)[place] + 1.0
        assert differ(tensor, other)
    if tensor.numel() > 3:
        assert differ(tensor, tensor.flip(0))
        assert differ(tensor, tensor.roll(1))
        assert differ(tensor, -tensor)
    assert len(marks_of(tensor)) <= max(300, tensor.numel() // 8)


@ways
@pytest.mark.parametrize("shape", [(64, 64), (40, 30, 3, 3), (700, 300)], ids=str)
@pytest.mark.parametrize("dim", [0, 1])
def test_rows_and_columns_that_change_places_are_seen(shape: tuple[int, ...], dim: int, by_c: bool) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for first, second in ((0, 1), (0, 32), (3, shape[dim] - 1)):
        if second < shape[dim]:
            order = list(range(shape[dim]))
            order[first], order[second] = second, first
            assert differ(tensor, tensor.index_select(dim, torch.tensor(order)))


@ways
@pytest.mark.parametrize("bit", [0, 22, 31])
def test_a_bit_that_changes_everywhere_is_seen(bit: int, by_c: bool) -> None:
    torch.manual_seed(0)
    for count in (64, 4096, 2**17):
        words = torch.randint(-(2**31), 2**31 - 1, (count,), dtype=torch.int32)
        changed = words ^ torch.tensor(1 << bit).to(torch.int32)
        assert differ(words.view(torch.float32), changed.view(torch.float32))


@ways
@pytest.mark.parametrize("count", [2**16 - 1, 2**16 + 1, 5 * 2**16 + 33])
def test_they_depend_on_the_numbers_alone(count: int, by_c: bool) -> None:
    buffer = torch.randn(count + 3, generator=torch.Generator().manual_seed(0))
    part = buffer[3:]
    threads, found = torch.get_num_threads(), []
    try:
        for used in (1, 2, 3):
            torch.set_num_threads(used)
            found.append(marks_of(part))
    finally:
        torch.set_num_threads(threads)
    found.append(marks_of(part.clone()))
    found.append(marks_of(part.repeat_interleave(2)[::2]))
    assert all(torch.equal(found[0], one) for one in found)
