"""``python -m tests.benchmarks.embeddings``: a lookup in a large vocabulary, forward and backward."""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor, nn

import weightnoise as wn
from weightnoise import _lookup


def step(layer: nn.Module, tokens: Tensor) -> None:
    """A forward and a backward."""
    layer.zero_grad()
    layer(tokens).sum().backward()


def main(vocabulary: int = 50_000, width: int = 512, rounds: int = 15) -> int:
    """Time the plain layer, the rows that are looked up, and the whole draw, in turns."""
    torch.set_num_threads(2)
    tokens = torch.randint(vocabulary, (8, 128))
    plain = nn.Embedding(vocabulary, width, sparse=True)
    noisy = wn.add_weight_noise(copy.deepcopy(plain), 0.01)

    def whole() -> None:
        with mock.patch.object(_lookup, "_SHARE", vocabulary):
            step(noisy, tokens)

    ways: dict[str, Callable[[], None]] = {
        "no noise": lambda: step(plain, tokens),
        "rows": lambda: step(noisy, tokens),
        "whole draw": whole,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    for name, found in times.items():
        sys.stdout.write(f"{name}: {statistics.median(found):.2f} ms\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
