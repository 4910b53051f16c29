"""The one place where random numbers are drawn.

Every number comes from torch's own generators, or from a key that does: `torch.manual_seed` reproduces a
run, activation checkpointing redraws what it must, and nothing else has to be saved or restored.

Tensors are made with explicit shape, dtype and device, since torch's defaults are the user's; never ``*_like``
and never with a `torch.Generator` argument: the first are merged by graph compilers when two of them read the
same tensor, the second breaks the graph (pytorch#88576).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from weightnoise._random import philox as _engine
from weightnoise._random.seeds import key

_LOW_PRECISION = (torch.float16, torch.bfloat16)


def normal(like: Tensor) -> Tensor:
    """Standard normal numbers with the shape, dtype and device of ``like``: in a short dtype, those of float32.

    `torch.randn` in bfloat16 has other numbers in its last sixteen.
    """
    count = like.numel()
    if count >= _engine.LEAST and _engine.can_fill(like, count):  # For a small weight a call would be most of it.
        return _engine.filled(key(), like.shape).to(like.dtype)
    # Named, the size is parsed in half the time.
    if like.dtype in _LOW_PRECISION:
        return torch.randn(size=like.shape, dtype=torch.float32, device=like.device).to(like.dtype)
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
