"""The bits of a tensor in a few numbers, by which a change of it is seen."""

from __future__ import annotations

import functools
from typing import TypeAlias

import torch
from torch import Tensor

from weightnoise._random import philox as _engine
from weightnoise._random.memory import address
from weightnoise._torch.modes import is_plain

_MARKS = 32  # As in csrc/marks.c.

# How far apart the numbers are that are added up: primes, and so no multiple of the sides of weights, so that
# rows, columns and channels that change places are seen. Torch adds up many short rows slowly.
_SHORT_STEPS = (61, 67, 71, 73, 79, 83, 89, 97, 101, 103)
_LONG_STEPS = (1021, 1031, 1033, 1039, 1049, 1051, 1061, 1063, 1069, 1087)
_SHORT = 2 * max(_SHORT_STEPS)
_LONG = 16 * max(_LONG_STEPS)

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}

# Whether to flatten first, the whole numbers to look at, and the size and strides of rows of them; None for few.
_Layout: TypeAlias = tuple[bool, torch.dtype, tuple[tuple[int, int], tuple[int, int]] | None]


def marks_of(tensor: Tensor) -> Tensor:
    """Whole numbers made of the bits of ``tensor``, in any number of threads the same.

    Any one change is seen, and more at once unless they cancel, which takes a chance of one in 2^32 or an intent.
    """
    if not tensor.is_contiguous():
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    words, rest = divmod(tensor.numel() * tensor.dtype.itemsize, 4)
    if _engine._LIBRARY is not None and tensor.is_cpu and not rest and is_plain(tensor):
        return _marked(tensor, words)
    return _sums_of_bits(tensor)


def _marked(tensor: Tensor, words: int) -> Tensor:
    """In one pass through memory; torch's sums go up and down in it."""
    assert _engine._LIBRARY is not None
    out = torch.zeros(_MARKS, dtype=torch.int32, device="cpu")
    _engine._LIBRARY.weightnoise_mark(
        address(out, torch.int32, _MARKS),
        address(tensor, tensor.dtype, tensor.numel()),
        words,
        torch.get_num_threads(),
    )
    return out


def _sums_of_bits(tensor: Tensor) -> Tensor:
    """Sums at places some steps apart."""
    if tensor.storage_offset():
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    flat, integers, rows = _layout(tensor.shape, tensor.dtype)
    bits = (tensor.view(-1) if flat else tensor).view(integers)
    return bits.clone() if rows is None else bits.as_strided(*rows).sum(0)


@functools.lru_cache(maxsize=1024)
def _layout(shape: torch.Size, dtype: torch.dtype) -> _Layout:
    size, count = dtype.itemsize, shape.numel()
    # Eight bytes at a time, where these go up in it. The signs of two doubles would cancel in a sum modulo 2^64.
    width = 8 if count * size % 8 == 0 else size
    if dtype in (torch.float64, torch.complex128):
        width = 4
    flat = not shape or shape[-1] * size % width != 0
    count = count * size // width
    if count <= _SHORT:
        return flat, _INTEGERS[width], None
    step = min(_SHORT_STEPS if count < _LONG else _LONG_STEPS, key=lambda step: count % step)
    length = step + count % step
    return flat, _INTEGERS[width], (((count - length) // step + 1, length), (step, 1))
