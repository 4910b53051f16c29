"""Rates: rare events come as often as they should, also mirrored, scaled and in short dtypes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import weightnoise as wn
from weightnoise._random import draws as _random
from weightnoise.laws import _rates

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# From a rate to a law, and from a weight of ones and the noisy weight to the events.
EVENTS: dict[str, tuple[Callable[[float], wn.Noise], Callable[[Tensor], Tensor]]] = {
    "drop_connect": (lambda p: wn.DropConnect(p, rescale=False), lambda noisy: noisy == 0),
    "zero": (wn.StuckAt, lambda noisy: noisy == 0),
    "high": (lambda p: wn.StuckAt(0.3, high=p, levels=(-3.0, 3.0)), lambda noisy: noisy == 3),
    "low": (lambda p: wn.StuckAt(0.25, high=0.2, low=p, levels=(-3.0, 3.0)), lambda noisy: noisy == -3),
    "flips": (lambda p: wn.BitFlip(p, bits=2), lambda noisy: noisy != 1),
    "salt": (lambda p: wn.SaltAndPepper(p, levels=(-3.0, 3.0)), lambda noisy: noisy == 3),
    "pepper": (lambda p: wn.SaltAndPepper(p, levels=(-3.0, 3.0)), lambda noisy: noisy == -3),
    "subset": (lambda p: wn.Chain((wn.Quantize(2, subset=p),)), lambda noisy: noisy != 1),
}


class Fixed:
    """Stands for torch's generator: the two words of a place, as numbers of 24 bits."""

    def __init__(self, words: list[Tensor]) -> None:
        self.words = words

    def __call__(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.words.pop(0).reshape(tuple(shape))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("rate", [3e-12, 1e-9, 4.4e-8, 1e-7, 1e-6, 3e-4])
def test_the_measure_of_the_numbers_below_a_rate_is_the_rate(
    rate: float, sign: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The numbers are a 24-bit word and a second one below it. Count the pairs whose event happens, exactly: all
    # whole first words, and by bisection the second words of the one that the rate cuts.
    def happens(first: int, second: int) -> bool:
        words = [torch.tensor([word * 2.0**-24]) for word in (first, second)]
        monkeypatch.setattr(_random, "unit_uniform", Fixed(words))
        return bool(_rates.event_mask(_rates.draw_events(torch.zeros(1), (1,), rate), rate, sign))

    top = 2**24 - 1

    def place(first: int, second: int) -> tuple[int, int]:  # The mirrored event looks from the other end.
        return (first, second) if sign > 0 else (top - first, top - second)

    whole = int(rate * 2**24)
    assert whole == 0 or happens(*place(whole - 1, top))
    assert not happens(*place(whole + 1, 0))
    low, high = 0, 2**24
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if happens(*place(whole, middle)) else (low, middle)
    assert (whole + low * 2.0**-24) * 2.0**-24 == pytest.approx(rate, rel=1e-6, abs=2.0**-47)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1.0, -1.0, 0.5, -2.0])
@pytest.mark.parametrize("size", [8, 1500])
@pytest.mark.parametrize("kind", EVENTS)
def test_events_come_at_their_rates(kind: str, size: int, factor: float, dtype: torch.dtype) -> None:
    make, happened = EVENTS[kind]
    rate, draws = 1e-4, 300 if size == 8 else 1
    if dtype != torch.float32 and size == 1500:
        size = 1000
    law, weight = make(rate), torch.ones(size, size, dtype=dtype)
    if kind == "subset":  # Rounding moves all but the largest.
        weight, largest = weight * 0.75, torch.ones(1, dtype=dtype)
        weight[0, 0] = largest.item()
        found = sum(int((law.apply(weight, law.draw(weight), factor) == 1).sum()) - 1 for _ in range(draws))
    else:
        found = sum(int(happened(law.apply(weight, law.draw(weight), factor)).sum()) for _ in range(draws))
    share = {"salt": 0.5, "pepper": 0.5, "flips": 2.0}.get(kind, 1.0)
    expected = rate * abs(factor) * share * weight.numel() * draws
    assert abs(found - expected) < 4 * math.sqrt(expected) + 1  # 4 s.e. of a count.


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("size", [8, 64])
def test_a_rate_of_one_is_always_and_of_zero_never(size: int, sign: float) -> None:
    weight = torch.ones(size, size)
    for rate in (0.5, 1e-5):  # As scaled to 1, and to 0.
        law = wn.StuckAt(rate)
        noise = law.draw(weight)
        assert not bool(law.apply(weight, noise, sign / rate).any())
        assert bool(law.apply(weight, noise, 0.0).all())


@pytest.mark.parametrize("size", [8, 64])
def test_the_same_numbers_give_more_faults_at_a_higher_rate(size: int) -> None:
    weight = torch.ones(20 * size, 20 * size)
    before = torch.zeros_like(weight, dtype=torch.bool)
    for rate in (1e-6, 1e-4, 9e-4, 1e-3, 0.3):  # 9e-4 has two words for each weight, 1e-3 one.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            law = wn.StuckAt(rate)
            stuck = law.apply(weight, law.draw(weight), 1.0) == 0
        assert bool((stuck | ~before).all())
        before = stuck


def test_rare_and_frequent_faults_go_together() -> None:
    # 4 s.e. of a count of 1e7 * 2e-6 = 20 is 18: enough to tell it from 0, 40, and from a twentieth of 0.3.
    weight = torch.ones(2500, 4000)
    law = wn.StuckAt(0.3, high=2e-6, levels=(-2.0, 2.0))
    noisy = law.apply(weight, law.draw(weight), 1.0)
    assert abs(int((noisy == 2).sum()) - 20) < 18
    zeros = int((noisy == 0).sum())
    assert abs(zeros - 3e6) < 4 * math.sqrt(1e7 * 0.3 * 0.7)
