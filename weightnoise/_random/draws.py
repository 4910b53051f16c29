"""The one place where random numbers are drawn.

Every number comes from torch's own generators, or from a key that does: `torch.manual_seed` reproduces a
run, activation checkpointing redraws what it must, and nothing else has to be saved or restored.

Tensors are made with explicit shape, dtype and device, since torch's defaults are the user's; never ``*_like``
and never with a `torch.Generator` argument: the first are merged by graph compilers when two of them read the
same tensor, the second breaks the graph (pytorch#88576).
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from weightnoise._random import philox as _engine
from weightnoise._torch.generator import seed_cpu

_LOW_PRECISION = (torch.float16, torch.bfloat16)
_BITS = 2**32 - 1
_CPU = torch.device("cpu")
_SEEDING = threading.RLock()  # torch's generator is one for all threads: who seeds it waits until it is back.


def normal(like: Tensor) -> Tensor:
    """Standard normal numbers with the shape, dtype and device of ``like``."""
    count = like.numel()
    if count >= _engine.LEAST and _engine.can_fill(like, count):  # For a small weight a call would be most of it.
        return _engine.filled(key(), like.shape).to(like.dtype)
    # Named, the size is parsed in half the time.
    return torch.randn(size=like.shape, dtype=like.dtype, device=like.device)


def symmetric_uniform(like: Tensor) -> Tensor:
    """Numbers uniform on [-1, 1] with the shape, dtype and device of ``like``.

    Drawn in float32 where the dtype is shorter: `torch.rand` in bfloat16 has 8 bits, which puts
    the mean at -1/256.
    """
    # Not in place: selective checkpointing may keep the random numbers for the recomputation.
    return torch.rsub(unit_uniform(like, like.shape), -1.0, alpha=-2.0).to(like.dtype)


def unit_uniform(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Numbers uniform on [0, 1) of the given shape, in float32 or better, on the device of ``like``."""
    if _engine.can_fill(like, math.prod(shape)):
        return _engine.filled(key(), shape, uniform=True)
    dtype = torch.float32 if like.dtype in _LOW_PRECISION else like.dtype
    return torch.rand(tuple(shape), dtype=dtype, device=like.device)


def signs(like: Tensor, shape: Sequence[int]) -> Tensor:
    """-1 or 1, equally likely, of the given shape, with the dtype and device of ``like``."""
    return torch.randint(2, tuple(shape), dtype=like.dtype, device=like.device) * 2 - 1


class Turns(NamedTuple):
    """How often the numbers of each row were made anew, and which dimension has the rows."""

    counts: Tensor
    dim: int


def keyed_signs(
    key: Tensor, like: Tensor, shape: Sequence[int], stream: int, turns: Turns | None = None
) -> Tensor:
    """As `signs`, each a function of the key, the stream, its own place, and the turn of its row."""
    return (_keyed_bits(key, like, shape, stream, turns) >> 31).to(like.dtype) * 2 - 1


def keyed_normal(key: Tensor, like: Tensor, turns: Turns | None = None) -> Tensor:
    """As `normal`, each number a function of key, place and the turn of its row (Box and Muller, 1958)."""
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


def key(device: torch.device | None = None) -> Tensor:
    """One int64 number from torch's generator of the CPU or of a device: all it takes to draw the same again."""
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=_CPU if device is None else device)


def derive_seed(seed: int, name: str) -> int:
    """A 63-bit seed for the parameter ``name``: the same in every process and for any order of reads."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numbered(seed: int, which: int | Sequence[int], antithetic: bool) -> list[tuple[int, int]]:
    """The seed and the sign of the first draws or of some; antithetic ones have the mirror of each next to it."""
    draws = range(which) if isinstance(which, int) else which
    numbers = [(draw // 2, 1 - 2 * (draw % 2)) if antithetic else (draw, 1) for draw in draws]
    return [(derive_seed(seed, f"draw {number}"), sign) for number, sign in numbers]


@contextmanager
def seeded(seed: int, device: torch.device, *, alone: bool = True) -> Iterator[None]:
    """Seed torch's generators of the CPU and of ``device``, and put them back as they were.

    ``alone``: other threads that seed them wait meanwhile.
    """
    turn = _SEEDING if alone else nullcontext()
    if device.type in ("cpu", "meta"):
        with turn, torch.random.fork_rng(devices=[]):
            seed_cpu(seed)
            yield
        return
    accelerator = torch.get_device_module(device)
    forked = torch.random.fork_rng(devices=[device], device_type=device.type)
    with turn, forked, accelerator.device(device):
        seed_cpu(seed)
        accelerator.manual_seed(seed)
        yield
