"""Flips of single bits: the distribution of independent bits, at the cost of the flips alone."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from weightnoise._cli.notation import read_spec
from weightnoise._random import philox, places
from weightnoise.laws import _bits, sample

WHOLE = {
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float64: torch.int64,
}
SIZES = {torch.float32: (32, 23), torch.float16: (16, 10), torch.bfloat16: (16, 7), torch.float64: (64, 52)}
MANTISSA = wn.BitFlip(0.01, code="float", positions="mantissa")


def flips(clean: Tensor, noisy: Tensor) -> Tensor:
    """Which bits differ, lowest first, as a mask of shape (bits, *shape)."""
    whole = WHOLE[clean.dtype]
    changed = (clean.view(whole) ^ noisy.view(whole)).long()
    return torch.stack([(changed >> bit) & 1 for bit in range(SIZES[clean.dtype][0])]).bool()


@pytest.fixture(params=["engine", "torch"])
def generator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(philox, "_LIBRARY", None)


@pytest.mark.usefixtures("generator")
@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.4])
@pytest.mark.parametrize("factor", [1.0, -1.0, 0.3, 2.4])
def test_events_are_independent_at_each_place(rate: float, factor: float) -> None:
    size, draws = 3000, 150
    chosen = torch.zeros(draws, size)
    for draw in range(draws):
        found = places.event_places(1000 * draw + 7, size, rate, rate * abs(factor))
        assert len(found.unique()) == len(found)
        chosen[draw, found] = 1
    p, n = rate * abs(factor), size * draws
    # 4 standard errors of a count; of the places by halves; of pairs of neighbours; of the spread of the counts.
    assert abs(chosen.sum() - n * p) < 4 * math.sqrt(n * p * (1 - p))
    assert abs(chosen[:, : size // 2].sum() - n * p / 2) < 4 * math.sqrt(n * p * (1 - p) / 2)
    pairs, q = (chosen[:, 1:] * chosen[:, :-1]).sum(), p * p
    assert abs(pairs - n * q) < 4 * math.sqrt(n * q * (1 + 2 * p)) + 1
    spread = chosen.sum(dim=1).var() / (size * p * (1 - p))
    assert abs(spread - 1) < 4 * math.sqrt(2 / draws + 1 / (draws * size * p))


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("options", [{"bits": 4}, {"bits": 8, "per": 0}], ids=["4", "8 per row"])
def test_single_flips_and_a_number_for_each_bit_are_one_distribution(
    size: int, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.linspace(-1, 1, size * size).reshape(size, size)
    law, draws = wn.BitFlip(0.015, **options), 40_000 // size
    found = {}
    for rare in (1.0, 0.0):
        monkeypatch.setattr(_bits, "_RARE", rare)
        torch.manual_seed(0)
        moved = torch.stack([sample(law, weight) - weight for _ in range(draws // 4)]).double()
        found[rare] = torch.stack([(moved != 0).double().mean(), moved.mean(), moved.square().mean()])
        errors = (
            torch.stack([(moved != 0).double().std(), moved.std(), moved.square().std()]) / moved.numel() ** 0.5
        )
    # Two means, each within 4 standard errors.
    assert bool(((found[1.0] - found[0.0]).abs() < 4 * 2**0.5 * errors).all())


@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("name", ["sign", "exponent", "mantissa", None, 3, (0, 2, "sign")])
@pytest.mark.parametrize("size", [8, 64])
def test_each_position_flips_at_the_rate_and_no_other(dtype: torch.dtype, name: Any, size: int) -> None:
    bits, mantissa = SIZES[dtype]
    meant = {
        "sign": {bits - 1},
        "exponent": set(range(mantissa, bits - 1)),
        "mantissa": set(range(mantissa)),
        None: set(range(bits)),
        3: {3},
        (0, 2, "sign"): {0, 2, bits - 1},
    }[name]
    weight = torch.randn(size, size, dtype=torch.float64).to(dtype)
    every = flips(weight, sample(wn.BitFlip(1.0, code="float", positions=name), weight))
    assert {bit for bit in range(bits) if every[bit].all()} == meant
    assert {bit for bit in range(bits) if every[bit].any()} == meant
    exact = flips(weight, sample(wn.BitFlip(count=17, code="float", positions=name), weight))
    assert int(exact.sum()) == 17
    law = wn.BitFlip(0.05, code="float", positions=name)
    found = sum(flips(weight, sample(law, weight)).sum() for _ in range(4))
    trials = 4 * len(meant) * weight.numel()
    assert abs(found - 0.05 * trials) < 4 * math.sqrt(0.05 * 0.95 * trials)  # 4 standard errors.


@pytest.mark.usefixtures("generator")
@pytest.mark.parametrize("size", [8, 64, 300])
def test_a_count_is_exact_and_grows_by_more_of_the_same(size: int) -> None:
    weight = torch.ones(size, size)
    law = wn.BitFlip(count=20, code="float")
    noise = law.draw(weight)
    masks = [flips(weight, law.apply(weight, noise, factor)) for factor in (0.0, 0.5, 1.0, 3.0)]
    assert [int(mask.sum()) for mask in masks] == [0, 10, 20, 60]
    assert all(bool((more | ~less).all()) for less, more in pairwise(masks))
    mirrored = flips(weight, law.apply(weight, noise, -1.0))
    assert int(mirrored.sum()) == 20
    assert not torch.equal(mirrored, masks[2])
    with pytest.raises(wn.OptionError, match="scaled by 2 is more than the 64 bits"):
        wn.BitFlip(count=40, code="float", positions="sign").apply(torch.ones(64), noise, 2.0)


def test_the_cost_grows_with_the_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    uniform = places._uniform

    def counting(key: int, count: int) -> Tensor:
        drawn.append(count)
        return uniform(key, count)

    monkeypatch.setattr(places, "_uniform", counting)
    weight = torch.ones(1000, 1000)
    for law in (wn.BitFlip(1e-6), wn.BitFlip(1e-6, code="float"), wn.BitFlip(count=5, code="float")):
        drawn.clear()
        sample(law, weight)
        assert sum(drawn) < 5000  # Of 8 to 32 million bits.


@pytest.mark.parametrize("size", [8, 64])
def test_what_is_not_finite_stays_or_is_clamped(size: int) -> None:
    weight = torch.full((size, size), -1.5)  # All ones in its exponent make NaN of it.
    top = wn.BitFlip(1.0, code="float", positions=30)
    assert sample(top, weight).isnan().all()
    clamped = wn.BitFlip(1.0, code="float", positions=30, non_finite="clamp")
    assert torch.equal(sample(clamped, weight), torch.full((size, size), -torch.finfo(torch.float32).max))
    assert sample(top, torch.full((size,), 0.1)).isfinite().all()
    assert sample(top, torch.ones(size)).isinf().all()


@pytest.mark.parametrize("size", [8, 64])
def test_a_chip_keeps_its_upper_bits_in_another_precision(size: int) -> None:
    model = wn.add_weight_noise(nn.Linear(size, size), wn.BitFlip(0.05, code="float", chip=2))

    def seen() -> Tensor:
        with torch.no_grad(), wn.no_noise(model):
            clean = model.weight.clone()
        noise = model.parametrizations.weight[0]
        return flips(clean, noise.handed.apply(clean, noise.chip_draw, 1.0))

    def cast_to(dtype: torch.dtype) -> Tensor:
        model.to(dtype)
        return seen()

    full = seen()
    assert torch.equal(full, seen())
    assert torch.equal(cast_to(torch.bfloat16), full[16:])
    assert torch.equal(cast_to(torch.float32), full)


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("law", [wn.BitFlip(0.01), MANTISSA, wn.BitFlip(count=9, bits=4)], ids=repr)
def test_holds_recomputation_gradients_and_vmap(law: wn.BitFlip, size: int) -> None:
    torch.manual_seed(0)
    model = nn.Linear(size, size)
    wn.add_weight_noise(model, law, memory="recompute")
    with wn.hold_noise(model, seed=1):
        first, second = model.weight, model.weight
        assert torch.equal(first, second)
        model(torch.ones(2, size)).sum().backward()
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad, torch.full((size, size), 2.0))
    weight = model.weight.detach()
    draws = torch.stack([law.draw(weight) for _ in range(3)])
    each = torch.stack([law.apply(weight, draw, 1.0) for draw in draws])
    assert torch.equal(torch.vmap(lambda draw: law.apply(weight, draw, 1.0))(draws), each)


@pytest.mark.compile
def test_compiled_code_has_the_flips_of_a_held_draw() -> None:
    model = wn.add_weight_noise(nn.Linear(64, 64), MANTISSA)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 64)
    with wn.hold_noise(model, seed=2):
        torch.testing.assert_close(compiled(x), model(x))
    assert not torch.equal(compiled(x), compiled(x))


LAWS = [
    wn.BitFlip(1e-6, code="float", positions=("sign", 3), non_finite="clamp", chip=3),
    wn.BitFlip(count=4, bits=6, positions="sign"),
]


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_configs_and_the_command_line(law: wn.BitFlip) -> None:
    assert wn.spec_from_config(json.loads(json.dumps(wn.spec_to_config(law)))) == law
    assert read_spec(repr(law)) == law


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "takes p, the probability of a flip, or count"),
        ({"p": 0.1, "count": 3}, "takes p, the probability of a flip, or count"),
        ({"count": 1.5}, r"count=...\) must be a whole number"),
        ({"p": 0.1, "code": "double"}, r"code=...\) must be one of 'integer', 'float'"),
        ({"p": 0.1, "code": "float", "bits": 4}, "drop bits, per, tile"),
        ({"p": 0.1, "positions": 8}, "must be a whole number from 0 to 7, got 8"),
        ({"p": 0.1, "positions": "exponent"}, "must be a whole number from 0 to 7, got 'exponent'"),
        ({"p": 0.1, "positions": (1, 1)}, "one or more different bits"),
        ({"p": 0.1, "code": "float", "positions": ()}, "one or more different bits"),
        ({"p": 0.1, "non_finite": "zero"}, r"non_finite=...\) must be one of"),
    ],
)
def test_options_are_checked(options: dict[str, Any], text: str) -> None:
    with pytest.raises(wn.OptionError, match=text):
        wn.BitFlip(**options)


def test_what_does_not_fit_a_parameter_is_refused() -> None:
    for law, text in (
        (wn.BitFlip(0.1, code="float", positions=20), r"'weight': torch.bfloat16 has no bit 20, it has 16"),
        (wn.BitFlip(count=1000), "count=1000 is more than the 48 bits that it has"),
    ):
        with pytest.raises(wn.UnsupportedParameterError, match=text):
            wn.add_weight_noise(nn.Linear(2, 3).bfloat16(), law)
