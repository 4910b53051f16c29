"""Tests of random words, each for one kind of pattern: what comes out is a probability that chance exceeds.

They are of the kinds of Marsaglia's Diehard, L'Ecuyer and Simard's TestU01 (2007) and Doty-Humphrey's PractRand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Words = npt.NDArray[Any]
Stream = Callable[[int], Iterator[Words]]  # Parts of so many words.


def chi_squared(counts: Any, expected: Any) -> float:
    """How likely counts are to be as far from the expected ones, which have the same sum, or as near."""
    counts, expected = np.broadcast_arrays(np.asarray(counts, dtype=float), np.asarray(expected, dtype=float))
    return chi_tails(float(((counts - expected) ** 2 / expected).sum()), counts.size - 1)


def chi_tails(statistic: float, degrees: int) -> float:
    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    above, below = torch.special.gammaincc(half[0], half[1]), torch.special.gammainc(half[0], half[1])
    return 2 * min(above.item(), below.item())


def two_sided(deviations: float) -> float:
    """The probability of a normal number at least so far from 0."""
    return math.erfc(abs(deviations) / math.sqrt(2))


def of_count(count: float, expected: float, variance: float) -> float:
    return two_sided((count - expected) / math.sqrt(variance))


def signs(words: Words) -> torch.Tensor:
    """The bits of each word, as -1 and 1."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8).reshape(-1, 4), axis=1)
    return torch.from_numpy(bits).float().mul_(2).sub_(1)


def bits(words: Words) -> Iterator[float]:
    """Each bit is 1 half of the time; no bit tells one of the same word or of one that is some words on."""
    each = signs(words)
    yield chi_tails((each.double().sum(dim=0).square() / len(each)).sum().item(), 32)
    for lag in (0, 1, 2, 16, 32, 64):
        products = (each[: len(each) - lag].T @ each[lag:]).double().square() / (len(each) - lag)
        yield chi_tails(products.triu(1).sum().item(), 496) if lag == 0 else chi_tails(products.sum().item(), 1024)


def pairs_of_bytes(words: Words) -> Iterator[float]:
    """The two bytes at the same place of neighbours, and of those 32 words on."""
    for shift, lag in itertools.product((0, 8, 16, 24), (1, 32)):
        values = ((words >> np.uint32(shift)) & np.uint32(255)).astype(np.int64)
        yield chi_squared(
            np.bincount(values[:-lag] * 256 + values[lag:], minlength=65536), (len(words) - lag) / 65536
        )


def gaps(words: Words) -> Iterator[float]:
    """How long it takes until the upper, or the lower, four bits are 0 again."""
    for shift in (28, 0):
        places = np.flatnonzero(((words >> np.uint32(shift)) & np.uint32(15)) == 0)
        lengths = np.minimum(np.diff(places) - 1, 100)
        odds = (1 / 16) * (15 / 16) ** np.arange(101)
        odds[100] = (15 / 16) ** 100
        yield chi_squared(np.bincount(lengths, minlength=101), odds * len(lengths))


def birthday_spacings(words: Words) -> Iterator[float]:
    """Distances that occur twice among 4,096 sorted words: 4 on average (Marsaglia, 1985)."""
    for each in (words, reversed_bits(words)):
        sets = np.sort(each[: len(each) // 4096 * 4096].reshape(-1, 4096), axis=1)
        distances = np.sort(np.diff(sets, axis=1), axis=1)
        twice = int((distances[:, 1:] == distances[:, :-1]).sum())
        yield of_count(twice, 4.0 * len(sets), 4.0 * len(sets))


def reversed_bits(words: Words) -> Words:
    """The words with their lowest bits first."""
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF), (16, 0x0000FFFF)):
        by, kept = np.uint32(shift), np.uint32(mask)
        words = ((words >> by) & kept) | ((words & kept) << by)
    return words


def ranks(words: Words) -> Iterator[float]:
    """The ranks of 32 words as matrices of bits."""
    rows = words[: len(words) // 32 * 32].reshape(-1, 32).T.copy()
    rank = np.zeros(rows.shape[1], dtype=np.int64)
    for bit in range(32):
        has = (rows >> np.uint32(bit)) & np.uint32(1)
        pivot = has.argmax(axis=0)
        some = has.any(axis=0)
        row = np.where(some, np.take_along_axis(rows, pivot[None], axis=0)[0], np.uint32(0))
        rows ^= row * has  # The pivot itself becomes 0, and is never chosen again.
        rank += some
    found = np.bincount(np.clip(rank, 29, 32) - 29, minlength=4)
    odds = [rank_odds(r) for r in (30, 31, 32)]
    yield chi_squared(found, np.array([1 - sum(odds), *odds]) * len(rank))


def rank_odds(r: int) -> float:
    """The probability that 32 random words have this rank."""
    ratios = ((1 - 2.0 ** (i - 32)) ** 2 / (1 - 2.0 ** (i - r)) for i in range(r))
    return math.prod(ratios) * 2.0 ** -((32 - r) ** 2)


def orders(words: Words) -> Iterator[float]:
    """The order of five words in a row: 120 of them."""
    fives = words[: len(words) // 5 * 5].reshape(-1, 5)
    code = np.zeros(len(fives), dtype=np.int64)
    for i in range(4):
        code = code * (5 - i) + (fives[:, i + 1 :] < fives[:, i : i + 1]).sum(axis=1)
    yield chi_squared(np.bincount(code, minlength=120), len(fives) / 120)


def weights(words: Words) -> Iterator[float]:
    """How many bits are 1 in a word and in the next."""
    weight = ((signs(words).sum(dim=1) + 32) / 2).long().clamp_(12, 20).numpy() - 12
    odds = np.array([math.comb(32, k) for k in range(33)]) / 2.0**32
    odds = np.array([odds[:13].sum(), *odds[13:20], odds[20:].sum()])
    found = np.bincount(weight[:-1] * 9 + weight[1:], minlength=81)
    yield chi_squared(found, np.outer(odds, odds).ravel() * (len(weight) - 1))


def spectrum(words: Words) -> Iterator[float]:
    """How much of the spectrum of the highest and of the lowest bit lies above 3 times its mean."""
    for shift in (31, 0):
        x = torch.from_numpy(((words >> np.uint32(shift)) & np.uint32(1)).astype(np.float64) * 2 - 1)
        power = torch.fft.rfft(x)[1:-1].abs().square() / len(x)
        odds = math.exp(-3)
        yield of_count((power > 3).sum().item(), len(power) * odds, len(power) * odds * (1 - odds))


def collisions(words: Words) -> Iterator[float]:
    """How many of 2^18 words share their upper, or their lower, 24 bits with one before."""
    for shift, mask in ((8, 0xFFFFFF), (0, 0xFFFFFF)):
        values = (words >> np.uint32(shift)) & np.uint32(mask)
        sets = np.sort(values[: len(values) // 2**18 * 2**18].reshape(-1, 2**18), axis=1)
        balls, urns = 2**18, 2**24
        expected = len(sets) * (balls - urns * -math.expm1(balls * math.log1p(-1 / urns)))
        yield of_count(int((sets[:, 1:] == sets[:, :-1]).sum()), expected, expected)


TESTS: tuple[Callable[[Words], Iterator[float]], ...] = (
    bits, pairs_of_bytes, gaps, birthday_spacings, ranks, orders, weights, spectrum, collisions
)  # fmt: skip
