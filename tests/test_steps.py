"""Steps along the draw of a seed: w += amount * (noisy - w), by any law, in place, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import LAWS, LanguageModel
from weightnoise import _steps
from weightnoise._random import philox

WIDTHS = [8, 64]
# Their noise is the same whatever the weight is, so that a step leads back.
ADDITIVE = ["gaussian", "uniform", "learned", "learned_factorised", "variational"]


def layer(width: int, law: Any = 0.1, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Linear:
    return wn.add_weight_noise(nn.Linear(width, width, dtype=dtype), law, **options)


def clean(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def noisy(model: nn.Module, **options: Any) -> Tensor:
    assert isinstance(model, nn.Linear)
    with torch.no_grad(), wn.hold_noise(model, **options):
        without_bias = F.linear(torch.eye(model.in_features, dtype=model.bias.dtype), model.weight)
        return without_bias.T


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("law", LAWS)
def test_it_is_the_noisy_weight_of_the_same_seed(law: str, width: int) -> None:
    for amount, sign in ((1.0, 1), (-0.3, 1), (0.5, -1)):
        model = layer(width, LAWS[law])
        before = clean(model)
        expected = torch.lerp(before["weight"], noisy(model, seed=3, sign=sign), amount)
        wn.step_along(model, 3, amount, sign=sign)
        after = clean(model)
        assert_close(after.pop("weight"), expected)
        assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("law", ADDITIVE)
def test_it_leads_back_up_to_rounding(law: str, width: int) -> None:
    model = layer(width, LAWS[law])
    before = clean(model)
    for amount in (1.0, -2.0, 1.0, 0.25, -0.25):
        wn.step_along(model, 5, amount)
    largest = before["weight"].abs().max().item() + 1.0
    # Five steps, each of which rounds by half a unit in the last place (2^-24) or a few of them.
    assert_close(model.state_dict()["weight"], before["weight"], rtol=0, atol=20 * largest * 2**-24)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("law", ["gaussian_rms_per_channel", "log_normal", "drop_connect"])
def test_noise_of_the_weight_leads_back_up_to_second_order(law: str, width: int) -> None:
    gaps = []
    for amount in (0.02, 0.01):
        torch.manual_seed(0)
        model = layer(width, LAWS[law])
        before = clean(model)["weight"]
        wn.step_along(model, 5, amount)
        wn.step_along(model, 5, -amount)
        gaps.append((clean(model)["weight"] - before).norm().item())
    assert gaps[0] / gaps[1] == pytest.approx(4.0, rel=0.3)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("law", ["gaussian", "uniform"])
def test_a_negative_amount_is_the_mirrored_draw_of_symmetric_noise(law: str, width: int) -> None:
    one, other = layer(width, LAWS[law]), layer(width, LAWS[law])
    other.load_state_dict(one.state_dict())
    wn.step_along(one, 1, -0.5)
    wn.step_along(other, 1, 0.5, sign=-1)
    assert_close(clean(one), clean(other))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("dtype", "unit"),
    [(torch.float64, 2**-53), (torch.float32, 2**-24), (torch.float16, 2**-11), (torch.bfloat16, 2**-8)],
)
def test_every_dtype_is_rounded_once(dtype: torch.dtype, unit: float, width: int) -> None:
    model = layer(width, wn.Gaussian(0.5), dtype)
    before = clean(model)["weight"].double()
    with wn.hold_noise(model, seed=2), wn.scale_noise(model, 2.0):
        draw = noisy(model, seed=2).double() - before
    wn.step_along(model, 2, 0.25)
    # The draw is known up to the rounding of the noisy weight, of size 4 at most.
    bound = (before.abs() + 4.0) * 2 * unit
    assert bool(((clean(model)["weight"].double() - before - 0.25 / 2 * draw).abs() <= bound).all())


@pytest.mark.parametrize("width", WIDTHS)
def test_torchs_generator_and_the_parameter_stay(width: int) -> None:
    model = layer(width)
    model.weight.grad = None
    parameter = model._parameters["weight"]
    state, version, address = torch.get_rng_state(), parameter._version, parameter.data_ptr()
    wn.step_along(model, 0, 1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert model._parameters["weight"] is parameter
    assert parameter.data_ptr() == address
    assert parameter._version > version
    assert parameter.requires_grad
    assert parameter.is_leaf
    assert parameter.grad is None


@pytest.mark.parametrize("width", WIDTHS)
def test_a_graph_that_needs_the_weight_of_before_says_so(width: int) -> None:
    model = layer(width)
    with wn.no_noise(model):
        loss = model(model(torch.ones(1, width))).sum()
    wn.step_along(model, 0, 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_an_open_hold_sees_the_step(width: int, inference: bool) -> None:
    model, x = layer(width), torch.ones(1, width)
    with torch.inference_mode(inference), torch.no_grad(), wn.hold_noise(model, seed=0):
        first = model(x)
        wn.step_along(model, 1, 1.0)
        moved = model(x)
        wn.step_along(model, 1, -1.0)
        assert not torch.allclose(moved, first, rtol=0, atol=0.01)
        assert_close(model(x), first, rtol=0, atol=1e-5)


@pytest.mark.skipif(philox._LIBRARY is None, reason="the engine was not built")
@pytest.mark.parametrize("per", [0, 1])
def test_a_large_weight_is_changed_where_it_lies(per: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> Tensor:
        raise AssertionError

    large, small = layer(64, wn.Gaussian(0.1, relative_to="absmax", per=per)), layer(8)
    monkeypatch.setattr(_steps, "apply_draw", fail)
    monkeypatch.setattr(philox, "output_like", fail)
    wn.step_along(large, 0, 1.0)
    with pytest.raises(AssertionError):
        wn.step_along(small, 0, 1.0)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_strength_is_that_of_now_and_the_draw_that_of_the_seed(width: int) -> None:
    ways: dict[str, Callable[[nn.Module], Any]] = {
        "scale": lambda model: wn.scale_noise(model, 0.5),
        "schedule": lambda model: wn.NoiseScheduler(model, lambda step: 0.5),
        "off, at half the amount": wn.no_noise,
        "held otherwise, at half the amount": lambda model: wn.hold_noise(model, seed=9, sign=-1),
    }
    found = []
    start = nn.Linear(width, width).state_dict()
    for name, way in ways.items():
        model = layer(width)
        model.load_state_dict(start)
        context = way(model)
        amount = 0.5 if "half" in name else 1.0
        if isinstance(context, wn.NoiseScheduler):
            wn.step_along(model, 4, amount)
        else:
            with context:
                wn.step_along(model, 4, amount)
        found.append(clean(model)["weight"])
    for other in found[1:]:
        assert_close(other, found[0])


@pytest.mark.parametrize("size", [(7, 5), (64, 64)])
def test_a_tied_parameter_moves_once_and_a_padding_row_stays(size: tuple[int, int]) -> None:
    rows, width = size
    model = nn.ModuleDict({"embed": nn.Embedding(rows, width, padding_idx=2)})
    model["head"] = nn.Linear(width, rows, bias=False)
    model["head"].weight = model["embed"].weight
    wn.add_weight_noise(model, 0.1)
    before = clean(model)["embed.weight"]
    with wn.hold_noise(model, seed=1), torch.no_grad():
        expected = model["embed"](torch.arange(rows))
    wn.step_along(model, 1, 1.0)
    after = clean(model)["embed.weight"]
    assert_close(after, expected)
    assert torch.equal(after[2], before[2])


def test_names_decide_the_draw_as_in_a_hold() -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), 0.1)
    before = clean(model)
    wn.step_along(model[0], 0, 1.0)
    part = clean(model)
    assert torch.equal(part["1.weight"], before["1.weight"])
    with wn.hold_noise(model[0], seed=0):
        wn.step_along(model[0], 0, -1.0)
    wn.step_along(model, 0, 1.0)
    moves = [clean(model)[f"{place}.weight"] - before[f"{place}.weight"] for place in (0, 1)]
    assert abs(torch.corrcoef(torch.stack([move.flatten() for move in moves]))[0, 1].item()) < 4 / 8  # 64 numbers.


def test_frozen_parameters_move_too() -> None:
    model = layer(8).requires_grad_(False)
    before = clean(model)["weight"]
    wn.step_along(model, 0, 1.0)
    assert not torch.equal(clean(model)["weight"], before)


def two_laws() -> nn.Module:
    return wn.add_weight_noise(LanguageModel(), {"embed.*": 0.1, "head.*": 0.2})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: wn.add_weight_noise(
                nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4))), 0.1
            ),
            r"Parameter '1\.weight' is made by other parametrizations",
        ),
        (lambda: layer(4, estimator="flipout"), "Parameter 'weight' has estimator='flipout'"),
        (lambda: layer(64, estimator="local"), "Parameter 'weight' has estimator='local'"),
        (two_laws, r"Parameter 'head\.weight' is tied, with Gaussian\(std=0\.1\)"),
    ],
)
def test_what_has_no_noisy_weight_is_refused_before_anything_moves(
    make: Callable[[], nn.Module], message: str
) -> None:
    model = make()
    before = clean(model)
    with pytest.raises(wn.UnsupportedParameterError, match=message):
        wn.step_along(model, 0, 1.0)
    assert all(torch.equal(value, before[name]) for name, value in clean(model).items())


def test_options_are_checked() -> None:
    with pytest.raises(wn.NotNoisyError):
        wn.step_along(nn.Linear(2, 2), 0, 1.0)
    with pytest.raises(wn.NotNoisyError):
        wn.step_along(wn.add_activation_noise(nn.Linear(2, 2), 0.1), 0, 1.0)
    for seed in (None, 1.5, True):
        with pytest.raises(ValueError, match=r"step_along\(seed=\.\.\.\) must be a whole number"):
            wn.step_along(layer(2), seed, 1.0)  # type: ignore[arg-type]
    for amount in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"step_along\(amount=\.\.\.\) must be a finite number"):
            wn.step_along(layer(2), 0, amount)
    with pytest.raises(ValueError, match=r"step_along\(sign=\.\.\.\) must be 1 or -1"):
        wn.step_along(layer(2), 0, 1.0, sign=0)


def loss_of(model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - x.roll(1, dims=1)).square().mean())


def loss_at(model: nn.Module, weights: dict[str, Tensor], x: Tensor) -> float:
    with torch.no_grad():
        return float((functional_call(model, weights, (x,)) - x.roll(1, dims=1)).square().mean())


def loss_of_clean(model: nn.Module, x: Tensor) -> float:
    with wn.no_noise(model):
        return loss_of(model, x)


@pytest.mark.parametrize("width", WIDTHS)
def test_zeroth_order_training_is_the_textbook_loop(width: int) -> None:
    std, rate, x = 0.01, 0.05, torch.randn(32, width)
    model, plain = layer(width, wn.Gaussian(std)), nn.Linear(width, width)
    plain.load_state_dict(model.state_dict())
    for seed in range(20):
        z = (noisy(model, seed=seed) - clean(model)["weight"]).detach() / std
        losses = []
        with wn.no_noise(model):
            for amount in (1.0, -2.0):
                wn.step_along(model, seed, amount)
                losses.append(loss_of(model, x))
            wn.step_along(model, seed, 1.0)
        wn.step_along(model, seed, -rate * (losses[0] - losses[1]) / (2 * std**2))
        around = []
        for sign in (1, -1):
            shifted = {"weight": plain.weight + sign * std * z, "bias": plain.bias}
            around.append(loss_at(plain, shifted, x))
        with torch.no_grad():
            plain.weight -= rate * (around[0] - around[1]) / (2 * std) * z
    # A central difference over 0.02 of losses near 1: their rounding (6e-8) is 6e-6 of a slope, of which a step
    # takes 0.05.
    assert_close(clean(model)["weight"], plain.weight.detach(), rtol=0, atol=1e-4)
    assert loss_of(plain, x) == pytest.approx(loss_of_clean(model, x), rel=1e-3)


@pytest.mark.parametrize("width", WIDTHS)
def test_evolution_strategies_are_the_textbook_loop(width: int) -> None:
    std, rate, members, x = 0.05, 0.1, 8, torch.randn(32, width)
    model, plain = layer(width, wn.Gaussian(std)), nn.Linear(width, width)
    plain.load_state_dict(model.state_dict())
    for generation in range(5):
        seeds = range(generation * members, (generation + 1) * members)
        start = clean(model)["weight"]
        directions = [(noisy(model, seed=seed) - start).detach() / std for seed in seeds]
        losses = []
        for seed in seeds:
            with wn.hold_noise(model, seed=seed):
                losses.append(loss_of(model, x))
        mean = sum(losses) / members
        for seed, loss in zip(seeds, losses, strict=True):
            wn.step_along(model, seed, -rate * (loss - mean) / (members * std**2))
        gradient = torch.zeros_like(start)
        textbook = []
        for z in directions:
            shifted = {"weight": plain.weight + std * z, "bias": plain.bias}
            textbook.append(loss_at(plain, shifted, x))
        for z, loss in zip(directions, textbook, strict=True):
            gradient += (loss - sum(textbook) / members) / (members * std) * z
        with torch.no_grad():
            plain.weight -= rate * gradient
    assert_close(clean(model)["weight"], plain.weight.detach(), rtol=0, atol=2e-5)
