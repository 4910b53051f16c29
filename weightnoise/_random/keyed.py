"""Numbers in torch that are a function of a key and their place: noise for the examples of a batch without end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_BITS = 2**32 - 1


class Turns(NamedTuple):
    """How often the numbers of each row were made anew, and which dimension has the rows."""

    counts: Tensor
    dim: int


def signs(key: Tensor, like: Tensor, shape: Sequence[int], stream: int, turns: Turns | None = None) -> Tensor:
    """-1 or 1, equally likely, each a function of the key, the stream, its own place, and the turn of its row."""
    return (_keyed_bits(key, like, shape, stream, turns) >> 31).to(like.dtype) * 2 - 1


def normal(key: Tensor, like: Tensor, turns: Turns | None = None) -> Tensor:
    """Standard normal numbers, each a function of key, place and turn of its row (Box and Muller, 1958)."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    radius, angle = (_keyed_bits(key, like, like.shape, stream, turns).to(dtype) + 0.5 for stream in (0, 1))
    normals = (-2.0 * (radius / 2.0**32).log()).sqrt() * (angle * (2.0 * math.pi / 2.0**32)).cos()
    return normals.to(like.dtype)


def _keyed_bits(
    key: Tensor, like: Tensor, shape: Sequence[int], stream: int, turns: Turns | None = None
) -> Tensor:
    """32 random bits at each place of an array without end, of which ``shape`` is the first corner.

    Counter-based: nothing is drawn from a generator and nothing has to be kept, so that a hold sees the
    same numbers in eager and in compiled code, in a recomputation, and for a batch of another size.
    """
    # Two words: of 32 bits one pair of keys or rows in 2^32 would be alike, and with it all their numbers.
    bits = _mix(key & _BITS)
    other = _mix((key >> 32) ^ bits)
    bits = _mix(bits ^ _mix(other ^ (stream + 1)))
    for dim, size in enumerate(shape):
        place = torch.arange(size, dtype=torch.int64, device=like.device)
        across = [-1] + [1] * (len(shape) - dim - 1)
        bits = _mix(bits ^ _mix(place.reshape(across) + 1))
        turn = _mix(_of_rows(turns.counts, size, like)).reshape(across) if turns and turns.dim == dim else None
        if turn is not None:
            bits = bits ^ turn
        if dim < len(shape) - 1:
            other = _mix(other ^ bits)
        if turn is not None:  # Into both words, by two bijections: no two turns of two rows are alike.
            other = other ^ ((turn * 0x2C1B3C6D) & _BITS)
    return bits ^ other


def _of_rows(counts: Tensor, size: int, like: Tensor) -> Tensor:
    """The counts of the first rows; 0 for those beyond."""
    return torch.nn.functional.pad(counts, (0, max(size - counts.numel(), 0)))[:size].to(like.device)


def _mix(bits: Tensor) -> Tensor:
    """A bijection of 32 bits that changes half of them for each bit that changes (Wellons, 2018).

    In int64 with factors below 2^31, so that no product overflows.
    """
    bits = ((bits ^ (bits >> 16)) * 0x21F0AAAD) & _BITS
    bits = ((bits ^ (bits >> 15)) * 0x735A2D97) & _BITS
    return bits ^ (bits >> 15)
