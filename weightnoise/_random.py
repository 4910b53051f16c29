"""The one place where random numbers are drawn.

Every number comes from torch's own generators: `torch.manual_seed` reproduces a run, activation
checkpointing redraws what it must, and nothing else has to be saved or restored.

Tensors are made with explicit shape, dtype and device, never ``*_like`` and never with a
`torch.Generator` argument: the first are merged by graph compilers when two of them read the
same tensor, the second breaks the graph (pytorch#88576).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_LOW_PRECISION = (torch.float16, torch.bfloat16)


def normal(like: Tensor) -> Tensor:
    """Standard normal numbers with the shape, dtype and device of ``like``."""
    # Named, the size is parsed in half the time.
    return torch.randn(size=like.shape, dtype=like.dtype, device=like.device)


def symmetric_uniform(like: Tensor) -> Tensor:
    """Numbers uniform on [-1, 1] with the shape, dtype and device of ``like``.

    Drawn in float32 where the dtype is shorter: `torch.rand` in bfloat16 has 8 bits, which puts
    the mean at -1/256.
    """
    return unit_uniform(like, like.shape).mul_(2.0).sub_(1.0).to(like.dtype)


def unit_uniform(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Numbers uniform on [0, 1) of the given shape, in float32 or better, on the device of ``like``."""
    dtype = torch.float32 if like.dtype in _LOW_PRECISION else like.dtype
    return torch.rand(tuple(shape), dtype=dtype, device=like.device)


def key() -> Tensor:
    """One int64 number from torch's CPU generator: all it takes to run a random function again."""
    return torch.randint(torch.iinfo(torch.int64).max, (), dtype=torch.int64)


def derive_seed(seed: int, name: str) -> int:
    """A 63-bit seed for the parameter ``name``: the same in every process and for any order of reads."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators of the CPU and of ``device``, and put them back as they were."""
    if device.type in ("cpu", "meta"):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    accelerator = torch.get_device_module(device)
    with torch.random.fork_rng(devices=[device], device_type=device.type), accelerator.device(device):
        torch.default_generator.manual_seed(seed)
        accelerator.manual_seed(seed)
        yield
