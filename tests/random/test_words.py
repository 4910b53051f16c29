"""The words behind the numbers: whether a battery of tests for random words finds a pattern in them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest

from tests.random import battery, definition
from weightnoise._random import philox as _engine

pytestmark = pytest.mark.skipif(_engine.engine() == "torch", reason="built without a C compiler, or switched off")

SEEDS = np.random.default_rng(0).integers(0, 2**63, 10_000, dtype=np.int64)  # As keys are.


def words(key: int, count: int) -> battery.Words:
    """As `definition.words`, by the kernels."""
    out = np.empty(count, dtype=np.uint32)
    assert _engine._LIBRARY is not None
    _engine._LIBRARY.weightnoise_fill(out.ctypes.data, count, key, 2, _engine._LEVEL, 1)
    return out


def along_places(count: int) -> Iterator[battery.Words]:
    for key in SEEDS:
        yield words(int(key), count)


def along_keys(count: int) -> Iterator[battery.Words]:
    """The same place under keys that count up, place after place."""
    for first in SEEDS:
        yield np.stack([words(int(first) + i, 1024) for i in range(count // 1024)]).T.ravel()


def along_rows(count: int) -> Iterator[battery.Words]:
    """The same column of a weight with 64 columns, column after column."""
    for key in SEEDS:
        yield words(int(key), count).reshape(-1, 64).T.ravel()


def differences(count: int) -> Iterator[battery.Words]:
    """Where a number changes when one bit of its key does."""
    for key, bit in zip(SEEDS, itertools.cycle(range(64)), strict=False):
        yield words(int(key), count) ^ words(int(key) ^ (1 << bit), count)


STREAMS = (along_places, along_keys, along_rows, differences)


def least_probability(parts: list[battery.Words]) -> dict[str, float]:
    """The least of each test, over what it looks at, from the parts together (Fisher, 1925)."""
    found = {}
    for test in battery.TESTS:
        logs = [[math.log(max(p, 1e-300)) for p in test(part)] for part in parts]
        found[test.__name__] = min(
            battery.chi_tails(-2 * sum(each), 2 * len(parts)) for each in zip(*logs, strict=True)
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stream", STREAMS)
def test_no_pattern_in_a_million_words(stream: battery.Stream) -> None:
    found = least_probability(list(itertools.islice(stream(2**19), 2)))
    assert min(found.values()) > 1e-6, found


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stream", STREAMS)
def test_no_pattern_in_many_words(stream: battery.Stream) -> None:
    found = least_probability(list(itertools.islice(stream(2**20), 16)))
    assert min(found.values()) > 1e-6, found


@pytest.mark.parametrize("rounds", [2, 3, 4, 5])
def test_the_battery_finds_the_patterns_that_fewer_rounds_leave(rounds: int) -> None:
    place = np.arange(2**17, dtype=np.uint64)
    found = np.stack(definition.philox((place, 0, 0, 0), (12345, 678), rounds), axis=1).astype(np.uint32).ravel()
    assert min(least_probability([found]).values()) < 1e-12
