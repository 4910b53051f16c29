"""Contexts switch, hold and scale; they nest in any order and leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.cases import CASES, LAWS
from tests.helpers import seen
from tests.reference import clean_weights, held_weights
from weightnoise._noise.context import NoiseContext


def make() -> nn.Linear:
    return wn.add_weight_noise(nn.Linear(3, 2), 0.1)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("case", CASES)
def test_off_is_off(case: str, law: str) -> None:
    plain, noisy = CASES[case].model(), wn.add_weight_noise(CASES[case].model(), LAWS[law])
    with wn.no_noise(noisy):
        assert torch.equal(noisy(CASES[case].batch()), plain(CASES[case].batch()))
        for module in noisy.modules():
            for name, parameter in module._parameters.items():
                assert getattr(module, name) is parameter


def test_no_noise_takes_several_models_and_ones_without_noise() -> None:
    first, second, plain = make(), make(), nn.Linear(2, 2)
    with wn.no_noise(first, plain, second):
        assert first.weight is first._parameters["weight"]
        assert second.weight is second._parameters["weight"]
    assert seen(first) is not first._parameters["weight"]


def test_no_noise_on_a_submodule_switches_only_that_part() -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 0.1)
    with wn.no_noise(model[0]):
        assert model[0].weight is model[0]._parameters["weight"]
        assert seen(model[1]) is not model[1]._parameters["weight"]


@pytest.mark.parametrize("context", [wn.no_noise, wn.hold_noise, wn.force_noise, lambda m: wn.scale_noise(m, 2.0)])
def test_contexts_are_decorators_reenter_and_restore_after_any_exception(
    context: Callable[[nn.Module], NoiseContext],
) -> None:
    model = make()
    noise = model.parametrizations.weight[0]
    rest = {**noise.control.__dict__}
    decorated = context(model)

    @decorated
    def recurse(depth: int) -> None:
        assert len(noise.control.overrides) == depth
        if depth == 3:
            raise KeyboardInterrupt
        recurse(depth + 1)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            recurse(1)
        assert noise.control.__dict__ == rest


def test_contexts_close_in_any_order() -> None:
    model = make()
    opened = {
        "off": wn.no_noise(model),
        "hold": wn.hold_noise(model, seed=0),
        "scale": wn.scale_noise(model, 0.5),
    }
    for context in opened.values():
        context.__enter__()
    assert model.weight is model._parameters["weight"]
    opened["off"].__exit__(None, None, None)
    half = model.weight - model._parameters["weight"]
    opened["scale"].__exit__(None, None, None)
    whole = model.weight - model._parameters["weight"]
    opened["hold"].__exit__(None, None, None)
    torch.testing.assert_close(half * 2, whole)
    assert not torch.equal(seen(model), seen(model))


def test_the_innermost_hold_wins_and_the_outer_one_comes_back() -> None:
    model = make()
    with wn.hold_noise(model, seed=0):
        outer = model.weight.detach()
        with wn.hold_noise(model, seed=1):
            assert not torch.equal(model.weight, outer)
        assert torch.equal(model.weight, outer)


def test_no_noise_is_stronger_than_force_noise_in_both_orders() -> None:
    model = make()
    for contexts in ([wn.no_noise, wn.force_noise], [wn.force_noise, wn.no_noise]):
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context(model))
            assert model.weight is model._parameters["weight"]


def test_force_noise_turns_training_noise_on_in_eval_mode() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2).eval(), 0.1, when="training")
    with wn.force_noise(model):
        assert seen(model) is not model._parameters["weight"]
    assert model.weight is model._parameters["weight"]


@pytest.mark.parametrize("case", CASES)
def test_a_seed_gives_the_same_draw_and_leaves_the_random_state(case: str) -> None:
    model, x = wn.add_weight_noise(CASES[case].model().eval(), 0.1), CASES[case].batch()
    state = torch.get_rng_state()
    with wn.hold_noise(model, seed=3):
        first = model(x)
        assert torch.equal(model(x), first)
    with wn.hold_noise(model, seed=3):
        assert torch.equal(model(x), first)
    with wn.hold_noise(model, seed=4):
        assert not torch.equal(model(x), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_seed_gives_the_same_draw_in_another_process() -> None:
    code = """
import torch, weightnoise as wn
model = torch.nn.Linear(3, 2)
torch.nn.init.constant_(model.weight, 0.5)
wn.add_weight_noise(model, 0.1)
torch.manual_seed({other})
with wn.hold_noise(model, seed=7):
    print(model.weight.detach().tolist())
"""
    runs = [
        subprocess.run(
            [sys.executable, "-c", code.format(other=other)], capture_output=True, text=True, check=True
        )
        for other in (1, 2)
    ]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stdout.startswith("[[0.")


def test_a_seeded_draw_of_a_parameter_depends_on_its_name_alone() -> None:
    small = wn.add_weight_noise(nn.Sequential(nn.Linear(3, 2)), 0.1)
    large = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    large[0].load_state_dict(small[0].state_dict())
    wn.add_weight_noise(large, {"1.weight": 0.3, "0.weight": 0.1})
    assert torch.equal(held_weights(small, 0)["0.weight"], held_weights(large, 0)["0.weight"])


@pytest.mark.parametrize("law", ["gaussian", "uniform", "gaussian_value", "gaussian_std_per_channel"])
def test_the_mirrored_draw_is_exact(law: str) -> None:
    model = wn.add_weight_noise(CASES["float64"].model(), LAWS[law])
    plus, minus, clean = held_weights(model, 0), held_weights(model, 0, sign=-1), clean_weights(model)
    for name, weight in clean.items():
        torch.testing.assert_close(plus[name] - weight, weight - minus[name], rtol=1e-12, atol=1e-15)
        assert not torch.equal(plus[name], weight)


def test_a_mirrored_gaussian_on_a_zero_weight_is_the_bitwise_negative() -> None:
    model = nn.Linear(30, 20)
    nn.init.zeros_(model.weight)
    wn.add_weight_noise(model, 0.1)
    assert torch.equal(held_weights(model, 0)["weight"], -held_weights(model, 0, sign=-1)["weight"])


def test_a_doubled_strength_doubles_the_noise_bitwise() -> None:
    draws = []
    for std in (0.1, 0.2):
        model = nn.Linear(30, 20)
        nn.init.zeros_(model.weight)
        draws.append(held_weights(wn.add_weight_noise(model, std), 0)["weight"])
    assert torch.equal(2 * draws[0], draws[1])


def test_scales_multiply_and_equal_a_law_of_that_strength() -> None:
    model, other = CASES["mlp"].model(), CASES["mlp"].model()
    wn.add_weight_noise(model, 0.1)
    wn.add_weight_noise(other, 0.1 * 2.0 * 1.5)
    with wn.scale_noise(model, 2.0), wn.scale_noise(model, 1.5):
        scaled = held_weights(model, 0)
    for name, weight in held_weights(other, 0).items():
        torch.testing.assert_close(scaled[name], weight)


def test_a_scale_of_zero_makes_the_noise_zero() -> None:
    model = make()
    with wn.scale_noise(model, 0.0):
        assert torch.equal(model.weight, model._parameters["weight"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "law", [wn.DropConnect(0.5), wn.StuckAt(0.3, high=0.3), wn.BitFlip(0.6), wn.Quantize(4, subset=0.6)]
)
@pytest.mark.parametrize("wrap", [lambda law: law, lambda law: [law, 0.1], lambda law: wn.Protect(law, 0.1)])
def test_a_rate_cannot_be_scaled_past_one(law: wn.Noise, wrap: Callable[[wn.Noise], Any]) -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), wrap(law))
    with (
        pytest.raises(wn.SpecError, match=r"scaled by 2 would have a rate of \d.*, (above|not below) 1"),
        wn.scale_noise(model, 2.0),
    ):
        pass
    with wn.scale_noise(model, 0.5):
        model(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"(above|not below) 1"):
        law.apply(torch.ones(2, 3), law.draw(torch.ones(2, 3)), 2.0)
    model(torch.ones(1, 3))  # The context that failed left nothing behind.


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf")])
def test_a_scale_must_be_finite_and_not_negative(factor: float) -> None:
    with pytest.raises(ValueError, match=r"scale_noise\(factor=...\)"):
        wn.scale_noise(make(), factor)


@pytest.mark.parametrize("options", [{"seed": 1.5}, {"seed": True}, {"sign": 0}, {"sign": True}, {"seed": "a"}])
def test_hold_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"hold_noise\(s"):
        wn.hold_noise(make(), **options)


@pytest.mark.parametrize("context", [wn.hold_noise, wn.force_noise, lambda model: wn.scale_noise(model, 2.0)])
def test_contexts_that_need_noise_say_so(context: Callable[[nn.Module], NoiseContext]) -> None:
    with pytest.raises(wn.NotNoisyError, match="Call add_weight_noise"), context(nn.Linear(2, 2)):
        pass


def test_a_hold_follows_an_optimizer_step_and_its_scale() -> None:
    model = nn.Linear(3, 2)
    wn.add_weight_noise(model, wn.Gaussian(0.1, relative_to="absmax"))
    with wn.hold_noise(model, seed=0):
        before = model.weight.detach()
        with torch.no_grad():
            model._parameters["weight"].mul_(2.0)
        torch.testing.assert_close(model.weight.detach(), 2 * before)


def test_an_unseeded_hold_draws_from_torchs_generator() -> None:
    model, seen = make(), []
    for _ in range(2):
        torch.manual_seed(9)
        with wn.hold_noise(model):
            seen.append(model.weight.detach())
    with wn.hold_noise(model):
        seen.append(model.weight.detach())
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_failing_law_leaves_no_half_open_hold() -> None:
    def broken(weight: Tensor) -> Tensor:
        raise RuntimeError("broken")

    model = wn.add_weight_noise(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), {"0.weight": 0.1, "*": 0.2})

    class Breaks:
        def draw(self, weight: Tensor) -> Tensor:
            return broken(weight)

        def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
            return weight

    model[1].parametrizations.weight[0].law = Breaks()
    with pytest.raises(RuntimeError, match="broken"), wn.hold_noise(model, seed=0):
        pass
    assert not torch.equal(seen(model[0]), seen(model[0]))
