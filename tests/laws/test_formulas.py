"""Each law against a reference written from its formula, number by number, and its meaning for a factor."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import LAWS
from weightnoise.laws._complete import complete
from weightnoise.laws._spec import as_law


def random_weight(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def noisy_and_draw(law: wn.Noise, weight: Tensor, factor: float = 1.0) -> tuple[Tensor, Any]:
    noise = law.draw(weight)
    return law.apply(weight, noise, factor), noise


def by_element(weight: Tensor, fn: Any, *others: Tensor) -> Tensor:
    """Apply a function of Python numbers to each element."""
    flat = [tensor.flatten().tolist() for tensor in (weight, *others)]
    return torch.tensor([fn(*numbers) for numbers in zip(*flat, strict=True)], dtype=weight.dtype).reshape(
        weight.shape
    )


def by_channel(weight: Tensor, per: Any, fn: Any) -> Tensor:
    """Apply a function to each channel in turn."""
    if per == "tensor":
        return fn(weight)
    return torch.stack([fn(channel) for channel in weight.unbind(per)], dim=per)


@pytest.mark.parametrize("factor", [1.0, 0.5, -1.0])
def test_log_normal(factor: float) -> None:
    weight = random_weight(3, 4)
    noisy, noise = noisy_and_draw(wn.LogNormal(0.4), weight, factor)
    std = 0.4 * factor
    assert_close(noisy, by_element(weight, lambda w, e: w * math.exp(std * e - std**2 / 2), noise))
    assert torch.equal(noisy.sign(), weight.sign())


def rounded(weight: Tensor, bits: int, symmetric: bool, shift: Tensor | None = None) -> Tensor:
    values = weight.flatten().tolist()
    shifts = [0.0] * len(values) if shift is None else shift.flatten().tolist()
    if symmetric:
        top = 2 ** (bits - 1) - 1
        step, zero, bottom = max(map(abs, values)) / top, 0, -top
    else:
        low, high = min(*values, 0.0), max(*values, 0.0)
        top, bottom = 2**bits - 1, 0
        step = (high - low) / top
        zero = round(-low / step)
    codes = [
        min(max(round(value / step + zero + move), bottom), top)
        for value, move in zip(values, shifts, strict=True)
    ]
    return torch.tensor([step * (code - zero) for code in codes], dtype=weight.dtype).reshape(weight.shape)


@pytest.mark.parametrize("per", ["tensor", 0, 1, -1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantize(bits: int, symmetric: bool, per: Any) -> None:
    weight = random_weight(4, 5)
    noisy, _ = noisy_and_draw(wn.Quantize(bits, symmetric=symmetric, per=per), weight)
    assert_close(noisy, by_channel(weight, per, lambda channel: rounded(channel, bits, symmetric)))
    levels = by_channel(noisy, per, lambda channel: torch.full_like(channel, float(channel.unique().numel())))
    assert bool((levels <= 2**bits).all())


def test_one_bit_is_for_the_affine_code_alone() -> None:
    noisy, _ = noisy_and_draw(wn.Quantize(1, symmetric=False), random_weight(4, 5).abs())
    assert noisy.unique().numel() == 2
    with pytest.raises(ValueError, match="has the single level 0"):
        wn.Quantize(1)


@pytest.mark.parametrize("sign", [1, -1])
def test_stochastic_rounding_adds_a_uniform_shift_before_it_rounds(sign: int) -> None:
    weight = random_weight(6, 5)
    noisy, (uniform, chosen) = noisy_and_draw(wn.Quantize(3, stochastic=True), weight, float(sign))
    assert chosen is None
    assert_close(noisy, rounded(weight, 3, True, sign * (uniform - 0.5)))


@pytest.mark.parametrize(("factor", "rate"), [(1.0, 0.4), (2.0, 0.8), (0.0, 0.0), (-1.0, 0.4)])
def test_a_random_subset_is_rounded_and_the_rest_is_left(factor: float, rate: float) -> None:
    weight = random_weight(6, 9)
    noisy, (_, uniform) = noisy_and_draw(wn.Quantize(3, subset=0.4, block=4), weight, factor)
    picked = (uniform < rate if factor >= 0 else uniform > 1 - rate).repeat_interleave(4, dim=1)[:, :9]
    assert_close(noisy, torch.where(picked, rounded(weight, 3, True), weight))


def test_clip_before_quantize_saturates() -> None:
    weight = torch.tensor([0.3, -0.2, 5.0], dtype=torch.float64, requires_grad=True)
    law = wn.Chain((wn.Clip(low=-1.0, high=1.0), wn.Quantize(3)))
    noisy = law.apply(weight, law.draw(weight), 1.0)
    assert_close(noisy.detach(), torch.tensor([1 / 3, -1 / 3, 1.0], dtype=torch.float64))
    noisy.sum().backward()
    assert torch.equal(weight.grad, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))  # type: ignore[arg-type]


def test_codes_are_exact_in_low_precision() -> None:
    weight = torch.linspace(-1, 1, 255).to(torch.bfloat16)
    noisy, _ = noisy_and_draw(wn.Quantize(8), weight)
    assert torch.equal(noisy, rounded(weight.double(), 8, True).to(torch.bfloat16))


@pytest.mark.parametrize("per", ["tensor", 0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_quantization_noise_is_half_a_step_at_most(symmetric: bool, per: Any) -> None:
    weight = random_weight(4, 5)
    noisy, noise = noisy_and_draw(wn.QuantizationNoise(3, symmetric=symmetric, per=per), weight, 0.7)

    def step(channel: Tensor) -> Tensor:
        low, high = min(channel.min().item(), 0.0), max(channel.max().item(), 0.0)
        size = channel.abs().max().item() / 3 if symmetric else (high - low) / 7
        return torch.full_like(channel, size)

    assert_close(noisy, weight + 0.7 * by_channel(weight, per, step) / 2 * noise)


@pytest.mark.parametrize(("factor", "scale"), [(1.0, 1.0), (0.5, 0.5), (-1.0, 1.0)])
@pytest.mark.parametrize("levels", ["absmax", "range", (-0.5, 0.25)])
def test_stuck_at(levels: Any, factor: float, scale: float) -> None:
    weight = random_weight(30, 20)
    noisy, uniform = noisy_and_draw(wn.StuckAt(0.2, high=0.1, low=0.3, levels=levels), weight, factor)
    largest = weight.abs().max().item()
    pairs = {"absmax": (-largest, largest), "range": (weight.min().item(), weight.max().item())}
    bottom, top = levels if isinstance(levels, tuple) else pairs[levels]

    def cell(w: float, u: float) -> float:
        u = u if factor > 0 else 1 - u
        shares = [(0.1 * scale, top), (0.3 * scale, 0.0), (0.6 * scale, bottom)]  # The rarest first.
        return next((level for edge, level in shares if u < edge), w)

    assert_close(noisy, by_element(weight, cell, uniform))
    assert noisy.unique().numel() < weight.numel()


def test_the_weights_stuck_at_a_lower_rate_are_among_those_of_a_higher_one() -> None:
    weight = torch.ones(30, 20)
    uniform = wn.StuckAt(0.1).draw(weight)
    few, many = (wn.StuckAt(rate).apply(weight, uniform, 1.0) == 0 for rate in (0.1, 0.4))
    assert bool((many | ~few).all())
    assert few.sum() < many.sum()


@pytest.mark.parametrize("per", ["tensor", 0])
@pytest.mark.parametrize(("factor", "rate"), [(1.0, 0.2), (2.0, 0.4), (-1.0, 0.2)])
def test_bit_flip(per: Any, factor: float, rate: float) -> None:
    weight = random_weight(12, 10)
    noisy, uniforms = noisy_and_draw(wn.BitFlip(0.2, bits=4, per=per), weight, factor)
    steps = by_channel(weight, per, lambda channel: torch.full_like(channel, channel.abs().max().item() / 7))

    def cell(w: float, step: float, *bits: float) -> float:
        code = round(w / step)
        stored = code % 16
        for place, u in enumerate(bits):
            if u < rate if factor > 0 else u > 1 - rate:
                stored ^= 1 << place
        return w + step * ((stored - 16 if stored >= 8 else stored) - code)

    assert_close(noisy, by_element(weight, cell, steps, *uniforms))


def test_flips_of_a_stored_code_stay_on_its_levels() -> None:
    weight = random_weight(20, 20)
    law = wn.Chain((wn.Quantize(4), wn.BitFlip(0.3, bits=4)))
    codes = law.apply(weight, law.draw(weight), 1.0) / (weight.abs().max() / 7)
    assert_close(codes, codes.round(), rtol=0, atol=1e-9)
    assert codes.round().unique().numel() == 16


def conductance(g: float, e: tuple[float, float, float], time: float, factor: float = 1.0) -> float:
    """One phase-change device, from the formulas of the docstring and its source."""
    r = g / 25
    programmed = max(0.0, g + factor * (0.26348 + 1.9650 * r - 1.1731 * r * r) * e[0])
    log = math.log(max(r, 1e-7))
    mean = min(max(0.0244 - 0.0155 * log, 0.049), 0.1)
    spread = min(max(-0.0059 - 0.0125 * log, 0.008), 0.045)
    exponent = abs(abs(factor) * mean + factor * spread * e[1])
    drifted = programmed * ((time + 20) / 20) ** -exponent
    size = min(0.0088 / max(programmed / 25, 1e-7) ** 0.65, 0.2)
    growth = math.sqrt(math.log((time + 20 + 250e-9) / 500e-9))
    return max(0.0, drifted * (1 + factor * size * growth * e[2]))


@pytest.mark.parametrize("factor", [1.0, 0.5, -1.0])
@pytest.mark.parametrize("time", [0.0, 3600.0, 31_536_000.0])
def test_programming_noise(time: float, factor: float) -> None:
    weight = random_weight(4, 5)
    noisy, (programming, drift, read) = noisy_and_draw(wn.ProgrammingNoise(time=time), weight, factor)
    assert (drift is None) == (time == 0)
    drift = torch.zeros_like(programming) if drift is None else drift
    largest = weight.abs().max().item()

    def cell(w: float, *e: float) -> float:
        plus = conductance(max(w, 0.0) / largest * 25, (e[0], e[2], e[4]), time, factor)
        minus = conductance(max(-w, 0.0) / largest * 25, (e[1], e[3], e[5]), time, factor)
        return (plus - minus) * largest / 25

    assert_close(noisy, by_element(weight, cell, *programming, *drift, *read))


def test_programming_noise_scaled_to_nothing_is_the_clean_weight() -> None:
    weight = random_weight(4, 5)
    noisy, _ = noisy_and_draw(wn.ProgrammingNoise(time=1e6), weight, 0.0)
    assert_close(noisy, weight)


def test_drift_compensation_keeps_the_sum_of_the_conductances() -> None:
    weight = random_weight(200, 50)
    for time in (3600.0, 31_536_000.0):
        options: dict[str, Any] = {"programming": (), "read": (), "drift_spread": (0.0, 0.0, 0.0, 0.0)}
        drifted, _ = noisy_and_draw(wn.ProgrammingNoise(time=time, **options), weight)
        compensated, _ = noisy_and_draw(wn.ProgrammingNoise(time=time, compensate=True, **options), weight)
        assert drifted.abs().sum() < 0.8 * weight.abs().sum()
        assert_close(compensated.abs().sum(), weight.abs().sum())


def test_coefficients_of_another_device() -> None:
    weight = random_weight(4, 5)
    law = wn.ProgrammingNoise(g_max=100.0, programming=(2.0,), read=())
    noisy, (programming, _, read) = noisy_and_draw(law, weight)
    assert read is None
    scale = weight.abs().max().item() / 100

    def cell(w: float, plus: float, minus: float) -> float:
        return (max(0.0, max(w, 0.0) / scale + 2 * plus) - max(0.0, max(-w, 0.0) / scale + 2 * minus)) * scale

    assert_close(noisy, by_element(weight, cell, *programming))


@pytest.mark.parametrize(("celsius", "grow"), [(85.0, True), (-20.0, False)])
@pytest.mark.parametrize("factor", [1.0, 0.0, -1.0])
def test_temperature(celsius: float, grow: bool, factor: float) -> None:
    weight = random_weight(4, 5)
    noisy, _ = noisy_and_draw(wn.Temperature(celsius), weight, factor)
    largest = weight.abs().max().item()
    power = 298 / (celsius + 273)
    expected = by_element(weight, lambda w: math.copysign(largest * (abs(w) / largest) ** power, w))
    assert_close(noisy, expected)
    assert bool((noisy.abs() >= weight.abs() - 1e-12).all()) == grow
    assert torch.equal(wn.Temperature(85.0).apply(torch.zeros(3), None, 1.0), torch.zeros(3))


@pytest.mark.parametrize("per", ["tensor", 0])
def test_clip_by_standard_deviations(per: Any) -> None:
    weight = random_weight(6, 7)

    def cut(channel: Tensor) -> Tensor:
        limit = 1.2 * channel.std(correction=0).item()
        return by_element(channel, lambda w: min(max(w, -limit), limit))

    noisy, _ = noisy_and_draw(wn.Clip(1.2, per=per), weight, 0.3)
    assert_close(noisy, by_channel(weight, per, cut))


def test_clip_by_bounds_of_either_side() -> None:
    weight = torch.tensor([-2.0, 0.5, 3.0])
    for bounds, expected in (
        ((-1.0, 1.0), [-1.0, 0.5, 1.0]),
        ((-1.0, None), [-1.0, 0.5, 3.0]),
        ((None, 1.0), [-2, 0.5, 1]),
    ):
        law = wn.Clip(low=bounds[0], high=bounds[1])
        assert torch.equal(law.apply(weight, None, 1.0), torch.tensor(expected))
    assert wn.Clip() == wn.Clip(2.5)


@pytest.mark.parametrize("scale", [0.0, 0.25])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_protect_spares_the_largest(fraction: float, scale: float) -> None:
    weight = random_weight(4, 5)
    scores = torch.rand(4, 5)
    for by, ranks in (("magnitude", weight.abs()), (scores, scores)):
        law = wn.Protect(wn.Gaussian(0.5), fraction, by=by, scale=scale)  # type: ignore[arg-type]
        noisy, noise = noisy_and_draw(law, weight)
        order = ranks.flatten().argsort(descending=True)
        strength = torch.full((20,), 0.5, dtype=torch.float64)
        strength[order[: round(fraction * 20)]] *= scale
        assert_close(noisy, weight + strength.reshape(4, 5) * noise)


def test_scores_have_to_fit() -> None:
    model = torch.nn.Linear(3, 2)
    with pytest.raises(
        wn.UnsupportedParameterError, match=r"the scores have shape \(2, 2\), the parameter \(2, 3\)"
    ):
        wn.add_weight_noise(model, wn.Protect(wn.Gaussian(0.1), 0.5, by=torch.ones(2, 2)))


def test_protections_are_equal_if_their_scores_are() -> None:
    ones = wn.Protect(wn.Gaussian(0.1), 0.5, by=torch.ones(2))
    assert ones == wn.Protect(wn.Gaussian(0.1), 0.5, by=torch.ones(2))
    assert ones != wn.Protect(wn.Gaussian(0.1), 0.5, by=torch.zeros(2))
    assert ones != wn.Protect(wn.Gaussian(0.1), 0.5)
    assert ones != wn.Protect(wn.Gaussian(0.2), 0.5, by=torch.ones(2))
    assert ones != 3


def test_learned_gaussian() -> None:
    weight, std = random_weight(3, 4), random_weight(3, 4)
    law = wn.LearnedGaussian()
    noise = law.draw(weight)
    assert isinstance(noise, Tensor)
    assert_close(law.apply(weight, noise, 0.5, {"std": std}), weight + 0.5 * std * noise)
    assert torch.equal(law.strengths(weight)["std"], torch.full((3, 4), 0.017, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 2, 2), (5,), ()])
def test_factorised_noise_is_an_outer_product(shape: tuple[int, ...]) -> None:
    weight, law = random_weight(*shape), wn.LearnedGaussian(1.0, factorised=True)
    state = torch.get_rng_state()
    noisy, _ = noisy_and_draw(law, weight)
    torch.set_rng_state(state)
    rows = shape[0] if shape else 1
    columns = weight.numel() // rows if len(shape) > 1 else 1
    first, second = (torch.randn(count, dtype=torch.float64).tolist() for count in (rows, columns))

    def root(x: float) -> float:
        return math.copysign(math.sqrt(abs(x)), x)

    table = [[root(a) * root(b) if len(shape) > 1 else root(a) for b in second] for a in first]
    assert_close(noisy, weight + torch.tensor(table, dtype=torch.float64).reshape(shape))


def test_factorised_strength_starts_at_half_over_the_root_of_the_fan_in() -> None:
    for shape, fan_in in (((3, 16), 16), ((3, 4, 2, 2), 16), ((9,), 9)):
        std = wn.LearnedGaussian(factorised=True).strengths(torch.zeros(shape))["std"]
        assert_close(std, torch.full(shape, 0.5 / math.sqrt(fan_in)))


def test_variational() -> None:
    weight, rho = random_weight(3, 4), random_weight(3, 4)
    law = wn.Variational()
    noise = law.draw(weight)
    expected = by_element(weight, lambda w, r, e: w + 0.5 * math.log1p(math.exp(r)) * e, rho, noise)
    assert_close(law.apply(weight, noise, 0.5, {"rho": rho}), expected)


@pytest.mark.parametrize(
    ("per", "shape"), [("tensor", (1, 1, 1)), (1, (1, 4, 1)), (-1, (1, 1, 2)), ("element", (3, 4, 2))]
)
def test_parametric_noise(per: Any, shape: tuple[int, ...]) -> None:
    weight, law = random_weight(3, 4, 2), wn.ParametricNoise(per=per)
    assert law.strengths(weight)["strength"].shape == shape
    assert bool((law.strengths(weight)["strength"] == 0.25).all())
    strength = torch.rand(shape, dtype=torch.float64)
    noise = law.draw(weight)
    expected = weight + 0.5 * strength * weight.std(correction=0) * noise
    assert_close(law.apply(weight, noise, 0.5, {"strength": strength}), expected)


def test_a_list_hands_each_law_what_it_learns() -> None:
    law = as_law(LAWS["chain_learned"])
    assert isinstance(law, wn.Chain)
    weight = random_weight(3, 4)
    assert list(complete(law).strengths(weight)) == ["std_1", "rho_2"]
    own = {"std_1": torch.zeros(3, 4).double(), "rho_2": torch.full((3, 4), -100.0).double()}
    assert_close(law.apply(weight, law.draw(weight), 1.0, own), law.laws[0].apply(weight, None, 1.0))


@pytest.mark.parametrize(
    "law", [wn.StuckAt(0.2), wn.BitFlip(0.1, chip=0), wn.ProgrammingNoise(time=9.0, chip=0)], ids=repr
)
def test_a_chip_is_frozen_by_its_number_and_the_name_of_the_parameter(law: Any) -> None:
    weight, state = random_weight(6, 5), torch.get_rng_state()
    first = law.apply(weight, law.freeze(weight, "a"), 1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(law.apply(weight, law.freeze(weight, "a"), 1.0), first)
    assert not torch.equal(law.apply(weight, law.freeze(weight, "b"), 1.0), first)
    other = dataclasses.replace(law, chip=1)
    assert not torch.equal(law.apply(weight, other.freeze(weight, "a"), 1.0), first)
    assert dataclasses.replace(law, chip=None).freeze(weight, "a") is None


def test_a_list_freezes_what_has_a_chip_and_draws_the_rest() -> None:
    law = wn.Chain(
        (wn.StuckAt(0.2), wn.Protect(wn.BitFlip(0.1, chip=0), 0.1), wn.Gaussian(0.1), wn.ProgrammingNoise(chip=0))
    )
    weight = random_weight(6, 5)
    frozen = law.freeze(weight, "weight")
    first, second = law.redraw(weight, frozen), law.redraw(weight, frozen)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[2], second[2])
    assert torch.equal(first[3][0], second[3][0])  # Programmed once,
    assert not torch.equal(first[3][2], second[3][2])  # and read anew.
    assert wn.Chain((wn.Gaussian(0.1), wn.Clip())).freeze(weight, "weight") is None


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("LogNormal(-1)", r"LogNormal\(std=...\) must be a finite number >= 0"),
        ("LogNormal(1, gradient='no')", "gradient=...\\) must be one of"),
        ("Quantize(0)", r"Quantize\(bits=...\) must be a whole number from 1 to 16, got 0"),
        ("Quantize(4.0)", "got 4.0"),
        ("Quantize(True)", "got True"),
        ("Quantize(4, per='row')", "per=...\\) must be 'tensor' or a channel"),
        ("Quantize(4, subset=1.5)", r"Quantize\(subset=...\) must be in \[0, 1\], got 1.5"),
        ("Quantize(4, block=8)", "has no meaning with subset=1"),
        ("Quantize(4, symmetric=None)", "symmetric=...\\) must be one of True, False"),
        ("QuantizationNoise(17)", "from 1 to 16, got 17"),
        ("QuantizationNoise(4, gradient='no')", "gradient=...\\) must be one of"),
        ("StuckAt(0.6, high=0.6)", "the rates add up to 1.2, above 1"),
        ("StuckAt(-0.1)", r"StuckAt\(zero=...\) must be a finite number >= 0"),
        ("StuckAt(0.1, levels='max')", "levels=...\\) must be one of 'absmax', 'range'"),
        ("StuckAt(0.1, levels=(1.0, -1.0))", r"must be \(bottom, top\) in this order"),
        ("StuckAt(0.1, levels=(-1.0, 1.0), per=0)", "has no meaning with fixed levels"),
        ("StuckAt(0.1, chip=-1)", r"StuckAt\(chip=...\) must be a whole number >= 0"),
        ("BitFlip(1.5)", r"BitFlip\(p=...\) must be in \[0, 1\]"),
        ("BitFlip(0.1, bits=1)", "has the single level 0"),
        ("ProgrammingNoise(g_max=0)", r"ProgrammingNoise\(g_max=...\) must be positive"),
        ("ProgrammingNoise(time=-1.0)", r"time=...\) must be a finite number >= 0"),
        ("ProgrammingNoise(drift=(1.0,))", "drift=...\\) must be a tuple of 4 finite numbers"),
        ("ProgrammingNoise(programming=[1.0])", "programming=...\\) must be a tuple of finite numbers"),
        ("ProgrammingNoise(read=(float('nan'), 1.0, 1.0))", "must be a tuple of 3 finite numbers"),
        ("Temperature(-300.0)", "must be above -273 degrees Celsius"),
        ("Temperature(20.0, reference=float('inf'))", r"Temperature\(reference=...\)"),
        ("Clip(0)", "would make every weight zero"),
        ("Clip(2.0, low=-1.0)", "k or bounds, not both"),
        ("Clip(low=1.0, high=-1.0)", "low must be below high"),
        ("Clip(low=-1.0, per=0)", "has no meaning with fixed bounds"),
        ("Clip(low=float('nan'))", r"Clip\(low=...\) must be a finite number"),
        ("Protect(0.1, 0.5)", r"Protect\(law\) must be a law such as Gaussian\(0.1\), got 0.1"),
        ("Protect(Gaussian(0.1), 2.0)", r"Protect\(fraction=...\) must be in \[0, 1\]"),
        ("Protect(Gaussian(0.1), 0.5, by='gradient')", "must be 'magnitude' or a tensor of scores"),
        ("LearnedGaussian(-0.1)", r"LearnedGaussian\(init=...\)"),
        ("LearnedGaussian(factorised=1.5)", "factorised=...\\) must be one of"),
        ("Variational(float('inf'))", r"Variational\(init_rho=...\) must be a finite number"),
        ("Variational(prior_std=0.0)", "must be positive"),
        ("ParametricNoise(per='row')", r"ParametricNoise\(per=...\)"),
    ],
)
def test_options_are_checked_when_a_law_is_made(call: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        eval(call, vars(wn).copy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("per", ["tensor", 0])
@pytest.mark.parametrize("name", [name for name in LAWS if name.startswith(("quanti", "bit_flip", "programming"))])
def test_a_range_of_zero_has_no_step_and_no_noise(name: str, per: Any, size: int, dtype: torch.dtype) -> None:
    law = dataclasses.replace(LAWS[name], per=per)  # type: ignore[type-var]
    weight = (torch.randn(size, size) * 0.02).to(dtype)
    weight[: None if per == "tensor" else size // 2] = 0
    weight.requires_grad_()
    noisy, _ = noisy_and_draw(law, weight)  # type: ignore[arg-type]
    assert bool((noisy[: size // 2] == 0).all())
    noisy.sum().backward()
    assert weight.grad is not None
    assert bool(weight.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_range_wider_than_the_largest_number_of_the_dtype_has_a_step(dtype: torch.dtype) -> None:
    weight = torch.tensor([-6e4, 6e4, 0.0], dtype=dtype)
    for law in (wn.Quantize(8, symmetric=False), wn.QuantizationNoise(8, symmetric=False)):
        noisy, _ = noisy_and_draw(law, weight)
        assert_close(noisy.double(), weight.double(), rtol=0, atol=1.2e5 / 255 / 2 + 32)


def test_one_random_bit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Quantize\(bits=1, stochastic=True\) has the levels 0 and d alone"):
        wn.Quantize(1, symmetric=False, stochastic=True)


@pytest.mark.parametrize("g_max", [10.0, 50.0])
def test_the_coefficients_of_programming_noise_belong_to_a_device_of_25_microsiemens(g_max: float) -> None:
    # Another device of that technology: its errors are the same fraction of its largest conductance.
    weight = random_weight(4, 5)
    law = wn.ProgrammingNoise(g_max=g_max, time=3600.0)
    noise = law.draw(weight)
    assert_close(law.apply(weight, noise, 1.0), wn.ProgrammingNoise(time=3600.0).apply(weight, noise, 1.0))
    # Given, the reference counts; own coefficients are for a device with this g_max.
    only = wn.ProgrammingNoise(g_max=g_max, programming=(2.0,), read=())
    referred = wn.ProgrammingNoise(g_max=g_max, programming=(2.0,), read=(), g_reference=25.0)
    high = torch.ones(1, dtype=torch.float64)
    up = torch.tensor([[0.1], [-1.0]], dtype=torch.float64), None, None
    assert only.apply(high, up, 1.0).item() == pytest.approx(1 + 0.1 * 2 / g_max)
    assert referred.apply(high, up, 1.0).item() == pytest.approx(1 + 0.1 * 2 / 25)
    with pytest.raises(ValueError, match="g_reference"):
        wn.ProgrammingNoise(g_reference=0.0)


@pytest.mark.parametrize(
    "law",
    [
        wn.ProgrammingNoise(programming=(), read=(), gradient="exact"),
        wn.ProgrammingNoise(programming=(), gradient="exact"),
        wn.Temperature(25.0, gradient="exact"),
        wn.Clip(2.0),
        wn.LogNormal(0.0, gradient="exact"),
    ],
    ids=repr,
)
def test_the_slope_at_zero_is_that_beside_it(law: wn.Noise) -> None:
    # These leave a weight of 0 and those around it as they are.
    weight = torch.tensor([0.0, 1e-9, -1e-9, 1.0, -1.0], dtype=torch.float64, requires_grad=True)
    noise = law.draw(weight)
    if isinstance(law, wn.ProgrammingNoise):
        noise = tuple(part if part is None else torch.zeros_like(part) for part in noise)
    law.apply(weight, noise, 1.0)[:3].sum().backward()
    assert weight.grad is not None
    assert_close(weight.grad[:3], torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("celsius", [-20.0, 85.0, 150.0])
def test_the_slope_of_a_temperature_at_zero_is_finite(celsius: float, dtype: torch.dtype) -> None:
    weight = torch.tensor([0.0, 1.0], dtype=dtype, requires_grad=True)
    wn.Temperature(celsius, gradient="exact").apply(weight, None, 1.0)[0].backward()
    assert weight.grad is not None
    slope = weight.grad[0].item()
    assert (1 < slope < math.inf) if celsius > 25 else 0 <= slope < 1


@pytest.mark.parametrize("gradient", ["exact", "straight-through"])
@pytest.mark.parametrize("per", ["tensor", 0])
def test_equal_weights_are_not_clipped(per: Any, gradient: Any) -> None:
    weight = torch.full((4, 5), 0.3, requires_grad=True)
    noisy, _ = noisy_and_draw(wn.Clip(2.5, per=per, gradient=gradient), weight)
    assert torch.equal(noisy, weight)
    noisy.sum().backward()
    assert torch.equal(weight.grad, torch.ones(4, 5))  # type: ignore[arg-type]
