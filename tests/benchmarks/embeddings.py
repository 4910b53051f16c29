"""A lookup in a large vocabulary, forward and backward: the rows that are looked up, and the whole draw."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from unittest import mock

import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.benchmarks.contenders import Step, naive
from tests.benchmarks.measure import Row, against, interleave
from tests.benchmarks.options import Options, markdown
from weightnoise._attach import embedding as _lookup


def step(layer: nn.Module, tokens: Tensor) -> None:
    """A forward and a backward."""
    layer.zero_grad()
    layer(tokens).sum().backward()


def run(options: Options, vocabulary: int = 50_000, width: int = 512) -> list[Row]:
    """The plain layer, the rows that are looked up, the whole draw, and that of torch's generator, in turns."""
    torch.manual_seed(0)
    tokens = torch.randint(vocabulary, (8, 128))
    plain = nn.Embedding(vocabulary, width, sparse=True)
    noisy = wn.add_weight_noise(copy.deepcopy(plain), 0.01)
    by_hand = naive(copy.deepcopy(plain), 0.01)

    def whole() -> None:
        with mock.patch.object(_lookup, "_SHARE", vocabulary):
            step(noisy, tokens)

    ways: dict[str, Step] = {
        "plain": lambda: step(plain, tokens),
        "weightnoise on": lambda: step(noisy, tokens),
        "weightnoise, whole matrix drawn": whole,
        "naive parametrization": lambda: step(by_hand, tokens),
    }
    times = interleave(ways, options.seconds, options.about("embedding"))
    return [{"vocabulary": vocabulary, "width": width, **against(times, name)} for name in ways]


def table(rows: Sequence[Row]) -> str:
    """Milliseconds."""
    head = f"{rows[0]['vocabulary']:,} x {rows[0]['width']}, 8 x 128 tokens"
    return markdown([head, "ms"], [[row["contender"], f"{row['milliseconds']:.2f}"] for row in rows])
