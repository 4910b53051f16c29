"""Seeding torch's generator of the CPU with all bits of a seed."""

from __future__ import annotations

import ctypes
import hashlib

import torch

from weightnoise._torch.tracing import outside_graphs

_WORDS = 624
_SIZE = 5056  # Bytes of a state; those of the words begin at _START, 8 for each.
_START = 24


@outside_graphs  # Dynamo knows neither hashes nor foreign memory.
def seed_cpu(seed: int) -> None:
    """Seed the generator; seeds of more than 32 bits differ in all of them.

    Its own ``manual_seed`` drops all but the lowest 32, so that two long seeds may mean the same numbers. The 624
    words of its state are made from the whole seed here. A short seed means what it always means.
    """
    generator = torch.default_generator
    generator.manual_seed(seed)
    if seed >> 32 == 0:
        return
    state = generator.get_state()
    if state.numel() != _SIZE:
        raise RuntimeError(
            f"torch {torch.__version__} keeps the state of its generator in {state.numel()} bytes and not in "
            f"{_SIZE}: a seed of more than 32 bits cannot be used. Use noise without a seed, and report this."
        )
    # A word takes 8 bytes, of which torch reads the lower half.
    words = hashlib.shake_128(seed.to_bytes(8, "little")).digest(8 * _WORDS)
    # Not by an operation of torch's: a mode that is on would see it.
    ctypes.memmove(state.data_ptr() + _START, words, len(words))
    generator.set_state(state)
