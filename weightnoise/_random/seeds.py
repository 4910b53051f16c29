"""What numbers are made from: keys, seeds by name, and torch's generators seeded for a while."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from weightnoise._torch.generator import seed_cpu

SEEDING = threading.RLock()  # torch's generator is one for all threads: who seeds it waits until it is back.
_CPU = torch.device("cpu")


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
    turn = SEEDING if alone else nullcontext()
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


def states(device: torch.device) -> Tensor:
    """The states of torch's generators of the CPU and of ``device``, one after the other."""
    own = torch.get_rng_state()
    if device.type in ("cpu", "meta"):
        return own
    return torch.cat((own, torch.get_device_module(device).get_rng_state(device)))


@contextmanager
def in_states(those: Tensor, device: torch.device) -> Iterator[None]:
    """Put torch's generators into ``those`` `states`, and back as they were."""
    with seeded(0, device):
        size = torch.get_rng_state().numel()
        torch.set_rng_state(those[:size])
        if size < those.numel():
            torch.get_device_module(device).set_rng_state(those[size:], device)
        yield
