"""Statistics of a weight in one pass over memory: see ``csrc/statistics.h``.

The bits do not depend on the number of threads, nor on the instruction set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightnoise._random import philox as _engine
from weightnoise._random.memory import address, has_plain_numbers, size_of_rows
from weightnoise._torch.modes import sees_operations
from weightnoise._torch.operators import make_operator

LARGEST, EXTREMES, DEVIATION = range(3)  # As in csrc/.

_LEAST = 1 << 15  # Numbers for which the call pays.
_PIECE = 1 << 12  # As csrc/ has it.
_LEAST_ROWS = 16  # What is found of each column takes the memory of four of its numbers.


def quick(weight: Tensor, what: int, dim: int | None) -> Tensor | None:
    """The statistic of the whole weight, or of each index in a dimension, shaped to broadcast against it.

    Two of them, the smallest and the largest number, in a dimension in front for `EXTREMES`; NaN where a number is
    NaN. None where operations of torch's have to do it: for a weight that is small or not plain numbers in memory,
    and for one whose statistic is part of a graph.
    """
    rows = 1 if dim is None else weight.shape[:dim].numel()
    if not (_can_look(weight) and (not dim or rows >= _LEAST_ROWS)):
        return None
    out = torch.ops.weightnoise.statistic(what, weight, dim) if sees_operations() else _found(what, weight, dim)
    shape = [weight.shape[dim] if one == dim else 1 for one in range(weight.ndim)]
    return out.reshape([2, *shape] if what == EXTREMES else shape)


def _found(what: int, weight: Tensor, dim: int | None) -> Tensor:
    out = _room(what, weight, dim)
    if dim:
        _of_columns(what, out, weight, weight.shape[:dim].numel(), weight.shape[dim + 1 :].numel())
    else:
        _of_rows(what, out, weight, out.shape[1])
    return out


def _room(what: int, weight: Tensor, dim: int | None) -> Tensor:
    count = 1 if dim is None else weight.shape[dim]
    return torch.empty((1 + (what == EXTREMES), count), dtype=torch.float32, device="cpu")


if _engine._LIBRARY is not None:
    make_operator("statistic", "(int what, Tensor weight, int? dim) -> Tensor", _found, _room)


def _can_look(weight: Tensor) -> bool:
    graph = weight.requires_grad and torch.is_grad_enabled()
    return _engine._LIBRARY is not None and weight.numel() >= _LEAST and not graph and has_plain_numbers(weight)


def _of_rows(what: int, out: Tensor, weight: Tensor, rows: int) -> None:
    assert _engine._LIBRARY is not None
    count = weight.numel()
    size = size_of_rows(count, rows)
    pieces = rows * -(-size // _PIECE)
    found = torch.empty((pieces, 2), dtype=torch.float64, device="cpu")
    _engine._LIBRARY.weightnoise_of_rows(
        what,
        address(out, torch.float32, rows * len(out)),
        address(found, torch.float64, 2 * pieces),
        address(weight, torch.float32, count),
        rows,
        size,
        _engine._LEVEL,
        torch.get_num_threads(),
    )


def _of_columns(what: int, out: Tensor, weight: Tensor, rows: int, each: int) -> None:
    assert _engine._LIBRARY is not None
    count = weight.numel()
    size = size_of_rows(count, rows)
    found = torch.empty((size, 2), dtype=torch.float64, device="cpu")
    _engine._LIBRARY.weightnoise_of_columns(
        what,
        address(out, torch.float32, size // each * len(out)),
        address(found, torch.float64, 2 * size),
        address(weight, torch.float32, count),
        rows,
        size,
        each,
        _engine._LEVEL,
        torch.get_num_threads(),
    )
