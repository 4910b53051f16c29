"""All 63 bits of a seed count, for torch's generator, for the engine and for noise per example."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import weightnoise as wn
from weightnoise._random import keyed as _keyed
from weightnoise._random import seeds as _seeds

# Two seeds of `hold_noise` whose seeds for a parameter called "weight" have the same lowest 32 bits.
ALIKE = (54562, 80642)


def test_these_seeds_are_alike() -> None:
    first, second = (_seeds.derive_seed(seed, "weight") for seed in ALIKE)
    assert first % 2**32 == second % 2**32
    assert first != second


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize(
    "law", [wn.Gaussian(0.1), wn.Uniform(0.1), wn.StuckAt(0.5), wn.LearnedGaussian(factorised=True)], ids=repr
)
def test_seeds_that_share_32_bits_do_not_share_their_noise(law: Any, size: int, dtype: torch.dtype) -> None:
    model = wn.add_weight_noise(nn.Linear(size, size, bias=False).to(dtype), law)
    found = []
    for seed in ALIKE:
        with wn.hold_noise(model, seed=seed), torch.no_grad():
            found.append(model.weight)
    same = (found[0] == found[1]).double().mean()
    # Of two halves of stuck weights, a quarter is stuck in both, and a quarter in neither: 4 s.e. of 64 of them.
    assert same < (0.75 if isinstance(law, wn.StuckAt) else 0.1)


@pytest.mark.parametrize("estimator", ["flipout", "local"])
def test_nor_do_the_examples_share_theirs(estimator: Any) -> None:
    model = wn.add_weight_noise(nn.Linear(8, 8), 0.1, estimator=estimator)
    x = torch.randn(20, 8)
    found = []
    for seed in ALIKE:
        with wn.hold_noise(model, seed=seed), torch.no_grad():
            found.append(model(x))
    assert not bool((found[0] == found[1]).any())


def test_every_bit_of_a_key_changes_the_numbers_of_its_examples() -> None:
    like = torch.empty(50, 40)
    key = torch.tensor(_seeds.derive_seed(1, "x"))
    numbers = _keyed.normal(key, like)
    for bit in range(63):
        changed = _keyed.normal(key ^ (1 << bit), like)
        # Independent ones: 4 s.e. of a mean product of 2,000.
        assert abs((numbers * changed).mean().item()) < 4 / 2000**0.5
        assert not bool((numbers == changed).any())


def test_keys_that_were_alike_in_32_bits_differ() -> None:
    first = torch.tensor(_seeds.derive_seed(1, "x"))
    mixed = _keyed._mix(first & _keyed._BITS) ^ (first >> 32)
    low = next(low for low in range(9) if not (int(_keyed._mix(torch.tensor(low)) ^ mixed) >> 31))
    other = (mixed ^ _keyed._mix(torch.tensor(low))) << 32 | low
    like = torch.empty(30, 40)
    assert not bool((_keyed.normal(first, like) == _keyed.normal(other, like)).any())


def test_rows_of_examples_differ_where_32_bits_of_them_are_alike() -> None:
    # Of 180,000 positions some four pairs share 32 bits, and would share all their signs.
    signs = _keyed.signs(torch.tensor(_seeds.derive_seed(2, "x")), torch.empty(0), (600, 300, 64), 0)
    codes = (signs.reshape(-1, 64) > 0).to(torch.int64) @ (1 << torch.arange(64))
    assert codes.unique().numel() == 180_000


def test_a_seeded_block_leaves_the_generator_as_it_was() -> None:
    torch.manual_seed(3)
    torch.randn(7)
    before = torch.get_rng_state()
    with _seeds.seeded(2**60 + 1, torch.device("cpu")):
        first = torch.randn(5)
    assert torch.equal(torch.get_rng_state(), before)
    with _seeds.seeded(2**60 + 1, torch.device("cpu")):
        assert torch.equal(torch.randn(5), first)
