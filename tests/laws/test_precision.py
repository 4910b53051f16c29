"""float16 and bfloat16 agree with float32 within their rounding: laws, estimators, divergences, gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import LAWS, LEARNED
from weightnoise.laws._complete import complete
from weightnoise.laws._law import apply_law
from weightnoise.laws._spec import as_law

SHORT = [torch.float16, torch.bfloat16]
# The last ones have 10^6 weights, more than float16 has numbers, and 10^7.
SIZES = [8, 64, pytest.param(1000, marks=pytest.mark.full), pytest.param(3200, marks=pytest.mark.exhaustive)]

# What flips bits of the dtype itself, "float_bits", has no counterpart in another one.
# A code is the nearest level: at the middle between two, a bit more of rounding is a whole step.
STEPS = {"quantize", "converter", "bit_flip", "chain_of_hardware"}


def upcast(noise: Any) -> Any:
    if isinstance(noise, tuple):
        return tuple(map(upcast, noise))
    if isinstance(noise, dict):
        return {name: upcast(value) for name, value in noise.items()}
    return noise.float() if isinstance(noise, Tensor) and noise.is_floating_point() else noise


def outcomes(name: str, size: int, dtype: torch.dtype, scale: float) -> tuple[Tensor, Tensor]:
    """The noisy weight in a short dtype, and in float32 from the same weight, numbers and strengths."""
    law = complete(as_law(LAWS[name]))  # type: ignore[arg-type]
    weight = (torch.randn(size, size) * scale).to(dtype)
    noise, strengths = law.draw(weight), law.strengths(weight)
    found = apply_law(law, weight, noise, 1.0, strengths)
    assert found.dtype == dtype
    return found, apply_law(law, weight.float(), upcast(noise), 1.0, upcast(strengths))


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [name for name in LAWS if not name.startswith(("custom", "float_bits"))])
def test_every_law(name: str, size: int, dtype: torch.dtype) -> None:
    found, expected = outcomes(name, size, dtype, 0.05)
    eps = torch.finfo(dtype).eps
    # A few roundings, of the weight, of the noise that is added to it, and of each law of a list.
    size_of_terms = expected.abs() + 0.05
    wrong = (found.float() - expected).abs() > 4 * eps * size_of_terms
    if any(name.startswith(start) for start in STEPS):
        assert wrong.double().mean() < 20 * eps
        eps = 4 * eps  # Of which each moves by a step.
    else:
        assert not bool(wrong.any())
    # Roundings of single weights are as often up as down: the whole moves by less. 4 s.e. and a bias of eps / 50.
    # Of the few levels of a converter each is rounded in one way.
    bias = eps / 10 if name.startswith("converter") else eps / 50
    moved, spread = (found.double() - expected.double()).mean(), found.double().std()
    assert abs(moved.item()) < (4 * eps / size + bias) * max(spread.item(), 0.05)
    assert found.double().std().item() == pytest.approx(
        expected.double().std().item(), rel=4 * eps / size + eps / 4
    )


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("scale", [1e-3, 30.0, 3000.0])
@pytest.mark.parametrize("size", [8, 64, 400])
@pytest.mark.parametrize("relative_to", ["absmax", "std", "rms", "value"])
@pytest.mark.parametrize("gradient", ["straight-through", "exact"])
def test_relative_strengths_of_large_and_small_weights(
    gradient: Any, relative_to: Any, size: int, scale: float, dtype: torch.dtype
) -> None:
    # 30 * sqrt(400 * 400) and 3000 * 64 are no numbers of float16, 30 and 3000 are.
    weight = (torch.randn(size, size) * scale).to(dtype).requires_grad_()
    law = wn.Gaussian(0.1, relative_to=relative_to, gradient=gradient)
    with torch.no_grad():
        noise = law.draw(weight)
    found = law.apply(weight, noise, 1.0)
    same = weight.detach().double().requires_grad_()
    expected = law.apply(same, noise.double(), 1.0)
    eps = torch.finfo(dtype).eps
    assert_close(found.double(), expected, rtol=4 * eps, atol=4 * eps * 0.1 * scale)
    along = torch.randn(size, size, dtype=torch.float64).to(dtype)
    found.backward(along)
    expected.backward(along.double())
    assert_close(weight.grad.double(), same.grad, rtol=8 * eps, atol=8 * eps * same.grad.abs().max().item())


@pytest.mark.parametrize("count", [10**5, pytest.param(10**7, marks=pytest.mark.full)])
@pytest.mark.parametrize("relative_to", ["absmax", "std", "rms"])
def test_statistics_of_many_weights_are_right_in_float32(relative_to: Any, count: int) -> None:
    weight = torch.randn(count // 1000, 1000)
    law = wn.Gaussian(1.0, relative_to=relative_to)
    found = law.deviation(weight).double().item()
    exact = {
        "absmax": weight.double().abs().max(),
        "std": weight.double().std(correction=0),
        "rms": weight.double().square().mean().sqrt(),
    }
    assert found == pytest.approx(exact[relative_to].item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [*SHORT, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "size", [8, 300, pytest.param(1000, marks=pytest.mark.full), pytest.param(3200, marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("law", [wn.Variational(prior_std=0.01), wn.VariationalDropout(1e-3, per=0)], ids=repr)
def test_divergences_are_sums_in_float32(law: Any, size: int, dtype: torch.dtype) -> None:
    # 300 * 300 = 90,000 weights: their sum is above 65,504, the largest number of float16.
    model = wn.add_weight_noise(nn.Linear(size, size, bias=False).to(dtype), law)
    found = wn.kl_divergence(model)
    same = wn.add_weight_noise(nn.Linear(size, size, bias=False).double(), law)
    same.load_state_dict(model.state_dict())
    expected = wn.kl_divergence(same)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12 if dtype == torch.float64 else 2e-6)
    found.backward()
    expected.backward()
    eps = torch.finfo(dtype).eps
    for parameter, double in zip(model.parameters(), same.parameters(), strict=True):
        assert (parameter.grad is None) == (double.grad is None)
        if parameter.grad is None or double.grad is None:
            continue
        assert_close(
            parameter.grad.double(), double.grad, rtol=4 * eps, atol=4 * eps * double.grad.abs().max().item()
        )


@pytest.mark.parametrize("dtype", [*SHORT, torch.float32, torch.float64])
@pytest.mark.parametrize("rho", [-400.0, -110.0, -90.0, -20.5, -19.5, -3.0, 0.0, 30.0])
def test_divergence_of_a_tiny_deviation(rho: float, dtype: torch.dtype) -> None:
    # ln s of s = ln(1 + e^rho), by a series where e^rho is no number of float32: rho - e^rho / 2 + ...
    log_std = rho - math.exp(rho) / 2 if rho < -15 else math.log(math.log1p(math.exp(rho)))
    std = math.exp(log_std) if log_std > -700 else 0.0
    law, weight = wn.Variational(), torch.full((1, 1), 0.5, dtype=dtype)
    learned = torch.full((1, 1), rho, dtype=dtype, requires_grad=True)
    found = law.kl_divergence(weight, {"rho": learned})
    expected = -log_std + (std**2 + 0.25) / 2 - 0.5
    assert found.item() == pytest.approx(expected, rel=1e-6)
    found.backward()
    slope = (std - 1 / std) / (1 + math.exp(-rho)) if rho > -100 else -1.0
    assert learned.grad.item() == pytest.approx(slope, rel=4 * torch.finfo(dtype).eps + 1e-5)


def layers(kind: str, size: int) -> tuple[nn.Module, Tensor]:
    if kind == "linear":
        return nn.Linear(size, size, bias=False), torch.randn(16, size)
    return nn.Conv2d(size, size, 3, bias=False), torch.randn(4, size, 5, 5)


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1000.0])
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("law", [wn.Gaussian(0.01), wn.Variational(-4.0), wn.VariationalDropout(0.1)], ids=repr)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_every_estimator(
    estimator: Any, autocast: bool, law: Any, kind: str, size: int, scale: float, dtype: torch.dtype
) -> None:
    """Squares of inputs from 256 on are infinite in float16."""
    layer, x = layers(kind, size)
    x = (x * scale).to(dtype)
    with torch.no_grad():
        weight = layer._parameters["weight"]
        assert weight is not None
        weight.copy_(weight.to(dtype))
    exact = wn.add_weight_noise(layer, law, estimator=estimator)
    short, same = layers(kind, size)[0].to(torch.float32 if autocast else dtype), x.float()
    wn.add_weight_noise(short, law, estimator=estimator)
    short.load_state_dict(exact.state_dict())
    with torch.no_grad():
        for model in (exact, short):  # Strengths that both dtypes hold.
            for strength in wn.learned_strengths(model).values():
                strength.copy_(strength.to(dtype))

        def of(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
            with wn.no_noise(model):
                plain = model(inputs)
            with wn.hold_noise(model, seed=1):
                return plain.float(), model(inputs).float()

        clean, noisy = of(exact, same)
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            found = of(short, same if autocast else x)
    eps = torch.finfo(dtype).eps
    reach = max(clean.abs().max().item(), noisy.abs().max().item())
    if reach > torch.finfo(dtype).max / 2:
        pytest.skip("the plain layer leaves the dtype")
    assert_close(found[0], clean, rtol=8 * eps, atol=8 * eps * reach)
    assert_close(found[1], noisy, rtol=8 * eps, atol=8 * eps * reach)


@pytest.mark.full
@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize(("kind", "size"), [("linear", 3200), ("conv", 1060)])
@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_every_estimator_of_ten_million_weights(estimator: Any, kind: str, size: int, dtype: torch.dtype) -> None:
    test_every_estimator(estimator, False, wn.Variational(-4.0), kind, size, 1000.0, dtype)


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("converter", ["merged", "external"])
def test_current_noise_of_large_inputs(converter: Any, autocast: bool, dtype: torch.dtype) -> None:
    # The variance leaves float16, its root does not.
    torch.manual_seed(1)
    layer, x = nn.Linear(64, 64, bias=False).to(dtype), (torch.rand(500, 64) * 500).to(dtype)
    law = wn.CurrentNoise(1e-4, converter=converter)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        scale = law.at(layer.float() if autocast else layer, x.float() if autocast else x).scale
    w = layer.weight.detach().double()
    size, sizes = w.abs(), x.double().abs()
    variance = (
        sizes @ size.T * size.max() if converter == "merged" else sizes @ (w.square() + size).T * sizes.max()
    ) * (0.1 / 1e-4)
    assert variance.max() > 65504
    assert_close(torch.as_tensor(scale).double(), variance.sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", sorted(LEARNED))
def test_learned_laws_keep_the_dtype(name: str) -> None:
    for dtype in SHORT:
        found, _ = outcomes(name, 8, dtype, 1.0)
        assert found.dtype == dtype


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("size", [8, 64, 1000])
@pytest.mark.parametrize("levels", ["absmax", "range"])
def test_gradients_of_stuck_weights_are_added_up_in_float32(levels: Any, size: int, dtype: torch.dtype) -> None:
    # Of 10^6 weights 3 in 10 are stuck at the top, with a gradient of 1: 300,000 is no number of float16, and less
    # those that are stuck at the bottom it is.
    law = wn.StuckAt(0.1, high=0.3, low=0.295, levels=levels)
    found = []
    for one in (dtype, torch.float32):
        weight = torch.linspace(-0.5, 0.5, size * size).reshape(size, size).to(dtype).to(one)
        weight[0, 0] = 1.0
        weight[0, 1] = -1.0 if levels == "range" else 0.0
        weight.requires_grad_()
        torch.manual_seed(0)
        noisy = law.apply(weight, law.draw(weight), 1.0)
        assert noisy.dtype == one
        noisy.backward(torch.ones_like(noisy) / (10 if levels == "range" else 1))
        found.append((noisy.detach().float(), weight.grad.float()))
    assert torch.equal(found[0][0], found[1][0])
    assert_close(found[0][1], found[1][1], rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [*SHORT, torch.float32, torch.float64])
def test_on_a_colder_chip_a_weight_of_zero_has_no_slope(dtype: torch.dtype) -> None:
    weight = torch.tensor([0.0, 1.0], dtype=dtype, requires_grad=True)
    law = wn.Temperature(-20.0, gradient="exact")
    law.apply(weight, None, 1.0)[0].backward()
    assert weight.grad[0].item() < 1e-6
