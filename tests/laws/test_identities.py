"""The identities of noise: bit for bit where they are exact, against the closed form where they are averages.

Seeds and sample counts are fixed; a tolerance is 4 standard errors of the estimate, measured on
the same samples, unless a line says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.cases import BIASED, LAWS
from weightnoise.laws._spec import as_law
from weightnoise.testing import assert_unbiased

DRAWS = 4000


def assert_mean(samples: Tensor, expected: float) -> None:
    """The mean of independent samples, within 4 of its standard errors."""
    error = samples.std().item() / math.sqrt(len(samples))
    assert abs(samples.mean().item() - expected) < 4 * error, (samples.mean().item(), expected, error)


def excess_losses(law: wn.Noise, antithetic: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of a linear model with noise minus without, per draw; its weight and its input."""
    x, target = torch.randn(64, 8, dtype=torch.float64), torch.randn(64, 5, dtype=torch.float64)
    model = nn.Linear(8, 5, bias=False).double()
    weight = model.weight.detach().clone()
    wn.add_weight_noise(model, law)

    def loss() -> Tensor:
        with torch.no_grad():
            return (model(x) - target).square().sum(dim=1).mean()

    with wn.no_noise(model):
        clean = loss()
    losses = []
    for seed in range(DRAWS):
        signs = (1, -1) if antithetic else (1,)
        pair = []
        for sign in signs:
            with wn.hold_noise(model, seed=seed, sign=sign):
                pair.append(loss() - clean)
        losses.append(torch.stack(pair).mean())
    return torch.stack(losses), weight, x


def noise_at(law: wn.Noise, weight: Tensor, noise: Any, factor: float = 1.0) -> Tensor:
    """What the law adds to a weight of zeros, where nothing rounds."""
    return law.apply(torch.zeros_like(weight), noise, factor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("make", [wn.Gaussian, wn.Uniform])
def test_a_doubled_strength_and_a_mirrored_draw_are_bitwise(make: Any, dtype: torch.dtype) -> None:
    weight = torch.zeros(50, 40, dtype=dtype)
    noise = make(0.1).draw(weight)
    once = noise_at(make(0.1), weight, noise)
    assert torch.equal(noise_at(make(0.2), weight, noise), 2 * once)
    assert torch.equal(noise_at(make(0.1), weight, noise, factor=2.0), 2 * once)
    assert torch.equal(noise_at(make(0.1), weight, noise, factor=-1.0), -once)


def test_the_same_seed_with_twice_the_strength_doubles_the_noise_of_a_model_bitwise() -> None:
    found = []
    for strength in (0.1, 0.2):
        model = nn.Linear(30, 20)
        nn.init.zeros_(model.weight)
        wn.add_weight_noise(model, strength)
        with torch.no_grad():
            torch.manual_seed(7)
            found.append(model.weight)
            with wn.hold_noise(model, seed=7):
                found.append(model.weight)
            with wn.hold_noise(model, seed=7, sign=-1):
                found.append(model.weight)
    for single, double in zip(found[:3], found[3:], strict=True):
        assert torch.equal(double, 2 * single)
    assert torch.equal(found[2], -found[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LAWS if name not in BIASED])
def test_unbiased_laws(name: str) -> None:
    law = as_law(LAWS[name])
    assert law is not None
    assert_unbiased(law, torch.randn(6, 8))


@pytest.mark.parametrize(
    ("law", "std"),
    [
        (wn.Gaussian(0.3), lambda w: 0.3),
        (wn.Uniform(0.3), lambda w: 0.3 / math.sqrt(3)),
        (wn.Gaussian(0.3, relative_to="absmax"), lambda w: 0.3 * w.abs().max()),
        (wn.Gaussian(0.3, relative_to="value"), lambda w: 0.3 * w.abs()),
        (wn.DropConnect(0.2), lambda w: w.abs() * math.sqrt(0.2 / 0.8)),
        (wn.LogNormal(0.3), lambda w: w.abs() * math.sqrt(math.expm1(0.3**2))),
        (wn.LearnedGaussian(0.3), lambda w: 0.3),
        (wn.LearnedGaussian(0.3, factorised=True), lambda w: 0.3 * math.sqrt(2 / math.pi)),
        (wn.Variational(-1.0), lambda w: math.log1p(math.exp(-1.0))),
        (wn.ParametricNoise(0.3), lambda w: 0.3 * w.std(correction=0)),
        (wn.QuantizationNoise(3), lambda w: w.abs().max() / 3 / math.sqrt(12)),
    ],
    ids=lambda value: repr(value) if isinstance(value, wn.Noise) else "",
)
def test_standard_deviation_of_the_noise(law: wn.Noise, std: Callable[[Tensor], Tensor]) -> None:
    weight = torch.randn(6, 8, dtype=torch.float64)
    moved = torch.stack([law.apply(weight, law.draw(weight), 1.0) - weight for _ in range(DRAWS)])
    assert_mean((moved / torch.as_tensor(std(weight))).square().mean(dim=(1, 2)), 1.0)


def test_gaussian_draws_are_normal_and_independent() -> None:
    draws = wn.Gaussian(1.0).draw(torch.empty(1000, 1000)).double().flatten()
    count = draws.numel()
    # Standard errors of the first four moments of a normal: 1, sqrt(2), sqrt(6), sqrt(24) over sqrt(n) for the
    # mean, the variance, the skewness and the excess kurtosis; of an autocorrelation, 1 over sqrt(n).
    for value, error in [
        (draws.mean(), 1.0),
        (draws.var() - 1, math.sqrt(2)),
        (draws.pow(3).mean(), math.sqrt(15)),
        (draws.pow(4).mean() - 3, math.sqrt(96)),
        ((draws[1:] * draws[:-1]).mean(), 1.0),
    ]:
        assert abs(value.item()) < 4 * error / math.sqrt(count)


def test_additive_noise_on_a_linear_model_is_ridge_regression() -> None:
    losses, _, x = excess_losses(wn.Gaussian(0.1), antithetic=True)
    assert_mean(losses, 5 * 0.1**2 * x.square().sum(dim=1).mean().item())


@pytest.mark.slow
def test_uniform_noise_costs_a_third_of_its_bound_squared() -> None:
    losses, _, x = excess_losses(wn.Uniform(0.1), antithetic=True)
    assert_mean(losses, 5 * 0.1**2 / 3 * x.square().sum(dim=1).mean().item())


@pytest.mark.slow
def test_factorised_noise_costs_two_over_pi_of_it() -> None:
    law = wn.LearnedGaussian(0.1, factorised=True)
    losses, _, x = excess_losses(law, antithetic=True)
    assert_mean(losses, 2 / math.pi * 5 * 0.1**2 * x.square().sum(dim=1).mean().item())


@pytest.mark.slow
def test_log_normal_noise_is_multiplicative() -> None:
    losses, weight, x = excess_losses(wn.LogNormal(0.2), antithetic=True)
    assert_mean(losses, math.expm1(0.2**2) * (weight.square() @ x.square().mean(dim=0)).sum().item())


def test_stochastic_rounding_is_unbiased_with_variance_f_one_minus_f() -> None:
    weight, law = torch.randn(6, 8, dtype=torch.float64), wn.Quantize(3, stochastic=True)
    step = weight.abs().max() / 3
    fraction = weight / step - (weight / step).floor()
    moved = torch.stack([law.apply(weight, law.draw(weight), 1.0) - weight for _ in range(DRAWS)])
    inside = (fraction > 0.01) & (fraction < 0.99)
    expected = (fraction * (1 - fraction))[inside] * step**2
    assert_mean((moved.square()[:, inside] / expected).mean(dim=1), 1.0)
    assert_mean(moved.mean(dim=(1, 2)), 0.0)


def test_stuck_and_flipped_weights_come_at_their_rates() -> None:
    weight = torch.rand(200, 200, dtype=torch.float64) + 0.5
    stuck = wn.StuckAt(0.05, high=0.02, low=0.03)
    noisy = stuck.apply(weight, stuck.draw(weight), 1.0)
    largest = weight.max()
    for hit, rate in ((noisy == 0, 0.05), (noisy == largest, 0.02), (noisy == -largest, 0.03)):
        # 4 s.e. of a rate over 40,000 weights; the largest weight itself counts once.
        assert abs(hit.double().mean().item() - rate) < 4 * math.sqrt(rate * (1 - rate) / weight.numel()) + 1e-4
    flips = wn.BitFlip(0.01, bits=8)
    untouched = flips.apply(weight, flips.draw(weight), 1.0) == weight
    survive = 0.99**8
    error = math.sqrt(survive * (1 - survive) / weight.numel())
    assert abs(untouched.double().mean().item() - survive) < 4 * error


@pytest.mark.slow
def test_programming_noise_of_phase_change_memory_has_the_measured_size() -> None:
    # Nandakumar 2019: sigma is 1.05 % of g_max at 0, 4.22 % at g_max; at most 1.0863 microsiemens, at r = .8375.
    def sigma(r: float) -> float:
        return 0.26348 + 1.9650 * r - 1.1731 * r * r

    assert sigma(0.0) / 25 == pytest.approx(0.0105, abs=5e-5)
    assert sigma(1.0) / 25 == pytest.approx(0.0422, abs=5e-5)
    assert max((sigma(i / 10_000), i / 10_000) for i in range(10_001)) == pytest.approx((1.0863, 0.8375), abs=1e-4)
    weight = torch.tensor([1.0, 0.8375, 0.5], dtype=torch.float64)  # Far enough from 0 for no clipping of g+.
    law = wn.ProgrammingNoise(read=())
    moved = torch.stack([law.apply(weight, law.draw(weight), 1.0) - weight for _ in range(4 * DRAWS)])
    # The other device of the pair should be at 0 and is cut there: half a normal, variance (1 - 1/pi) / 2 about
    # its mean sigma / sqrt(2 pi), which the pair's difference is short of.
    other = sigma(0.0) / 25
    for place, ratio in enumerate((1.0, 0.8375, 0.5)):
        assert_mean(moved[:, place], -other / math.sqrt(2 * math.pi))
        centred = moved[:, place] - moved[:, place].mean()
        assert_mean(centred.square(), (sigma(ratio) / 25) ** 2 + other**2 * (1 - 1 / math.pi) / 2)


@pytest.mark.parametrize(("time", "factor"), [(3600.0, 0.775), (86_400.0, 0.664), (31_536_000.0, 0.497)])
def test_the_largest_conductance_drifts_as_measured(time: float, factor: float) -> None:
    weight = torch.tensor([1.0], dtype=torch.float64)
    law = wn.ProgrammingNoise(time=time, programming=(), read=(), drift_spread=(0.0, 0.0, 0.0, 0.0))
    assert law.apply(weight, law.draw(weight), 1.0).item() == pytest.approx(factor, abs=1e-3)


@pytest.mark.slow
def test_multiplicative_noise_penalises_weights_by_their_input_power() -> None:
    losses, weight, x = excess_losses(wn.Gaussian(0.2, relative_to="value"), antithetic=True)
    assert_mean(losses, 0.2**2 * (weight.square() @ x.square().mean(dim=0)).sum().item())


@pytest.mark.slow
def test_drop_connect_is_multiplicative_noise_of_variance_p_over_one_minus_p() -> None:
    losses, weight, x = excess_losses(wn.DropConnect(0.3), antithetic=False)
    assert_mean(losses, 0.3 / 0.7 * (weight.square() @ x.square().mean(dim=0)).sum().item())


def test_additive_noise_leaves_the_expected_gradient_of_a_linear_model_unchanged() -> None:
    x, target = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64)
    model = nn.Linear(4, 3).double()
    clean = torch.autograd.grad((model(x) - target).square().mean(), model.weight)[0]
    wn.add_weight_noise(model, 0.5)
    for sign in (1, -1):
        with wn.hold_noise(model, seed=0, sign=sign):
            (model(x) - target).square().mean().backward()
    pair = model._parameters["weight"].grad / 2
    torch.testing.assert_close(pair, clean, rtol=0, atol=1e-14)  # The mirrored pair cancels exactly.


def test_exact_multiplicative_gradient_adds_decay_and_straight_through_adds_none() -> None:
    curvature, std = 1.7, 0.4
    for gradient, extra in (("exact", std**2 * curvature), ("straight-through", 0.0)):
        weight = torch.randn(50, dtype=torch.float64, requires_grad=True)
        law = wn.Gaussian(std, relative_to="value", gradient=gradient)  # type: ignore[arg-type]
        grads = []
        for _ in range(DRAWS):
            loss = (0.5 * curvature * law.apply(weight, law.draw(weight), 1.0).square()).sum()
            grads.append(torch.autograd.grad(loss, weight)[0] / weight.detach())
        assert_mean(torch.stack(grads).mean(dim=1), curvature + extra)


def test_the_output_of_a_linear_layer_has_the_variance_of_its_input_power() -> None:
    x = torch.randn(7, dtype=torch.float64)
    model = wn.add_weight_noise(nn.Linear(7, 5, bias=False).double(), 0.3)
    with torch.no_grad():
        outputs = torch.stack([model(x) for _ in range(DRAWS)])
    moved = outputs - outputs.mean(dim=0)
    assert_mean((moved / (0.3 * x.norm())).square().mean(dim=1), 1 - 1 / DRAWS)


def test_the_variance_over_a_batch_grows_by_the_trace_of_the_covariance_of_its_inputs() -> None:
    x = torch.randn(32, 6, dtype=torch.float64)
    model = nn.Linear(6, 5, bias=False).double()
    clean = model(x).var(dim=0).mean().item()
    wn.add_weight_noise(model, 0.3)
    with torch.no_grad():
        spreads = torch.stack([model(x).var(dim=0).mean() for _ in range(DRAWS)])
    assert_mean(spreads, clean + 0.3**2 * x.var(dim=0).sum().item())


def test_all_examples_of_a_batch_share_one_draw() -> None:
    model = nn.Linear(4, 1, bias=False).double()
    wn.add_weight_noise(model, 0.3)
    x = torch.randn(2, 4, dtype=torch.float64)
    with torch.no_grad():
        outputs = torch.stack([model(x).squeeze(1) for _ in range(DRAWS)])
    moved = outputs - outputs.mean(dim=0)
    assert_mean(moved[:, 0] * moved[:, 1], 0.3**2 * (x[0] @ x[1]).item())


@pytest.mark.slow
def test_a_smooth_loss_grows_by_half_the_curvature() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, target, std = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64), 0.01
    names = ["0.weight", "2.weight"]

    def loss(*weights: Tensor) -> Tensor:
        output = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (x,))
        return (output - target).square().mean()

    weights = tuple(model.get_parameter(name).detach() for name in names)
    hessian = torch.autograd.functional.hessian(loss, weights)
    trace = sum(float(hessian[i][i].reshape(weights[i].numel(), -1).trace()) for i in range(2))
    gradient = torch.autograd.functional.jacobian(loss, weights)
    power = sum(float(part.square().sum()) for part in gradient)
    clean = loss(*weights)
    wn.add_weight_noise(model, std)
    excess, single = [], []
    with torch.no_grad():
        for seed in range(DRAWS):
            pair = []
            for sign in (1, -1):
                with wn.hold_noise(model, seed=seed, sign=sign):
                    pair.append((model(x) - target).square().mean() - clean)
            excess.append(torch.stack(pair).mean())
            single.append(pair[0])
    assert_mean(torch.stack(excess), std**2 / 2 * trace)
    # Var L = std^2 |g|^2 up to terms of order std^4, which are below 1 % here; 4 s.e. of a variance are 9 %.
    assert torch.stack(single).var().item() == pytest.approx(std**2 * power, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("values", ["both signs", "positive", "negative", "mostly positive"])
def test_affine_stochastic_rounding_is_unbiased_up_to_the_ends(
    values: str, bits: int, sign: float, dtype: torch.dtype
) -> None:
    ends = {
        "both signs": (-1.0, 0.77),
        "positive": (0.0, 1.0),
        "negative": (-1.3, 0.0),
        "mostly positive": (-0.05, 1.0),
    }
    low, high = ends[values]
    weight = torch.linspace(low, high, 40, dtype=dtype)
    law = wn.Quantize(bits, symmetric=False, stochastic=True)
    each = weight.repeat(DRAWS, 1)  # One range, and DRAWS numbers for each weight.
    noisy = law.apply(each, law.draw(each), sign).double()
    levels = 2**bits - (2 if low < 0 < high else 1)
    step = (high - low) / levels
    # A mean of DRAWS roundings, each off by step / 2 at most: 4.5 s.e. for 40 of them.
    assert bool(((noisy.mean(dim=0) - weight.double()).abs() < 4.5 * step / 2 / math.sqrt(DRAWS) + 1e-6).all())
    assert bool(((noisy - each.double()).abs() < step * (1 + 1e-5)).all())
    assert noisy.unique().numel() <= 2**bits
    codes = noisy / step
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)


def test_a_weight_on_a_level_is_never_moved_by_random_rounding() -> None:
    law = wn.Quantize(8, stochastic=True)
    weight = (torch.arange(-127, 128) / 127.0).repeat(40_000)  # 10^7 roundings; 2^-24 of them would be seen.
    moved = (law.apply(weight, law.draw(weight), 1.0) - weight).abs()
    assert moved.max() < 1e-6
