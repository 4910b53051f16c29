"""Parameters that several modules share, and modules that go by several names."""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import nn

import weightnoise as wn
from tests.cases import CASES
from tests.helpers import Counting, seen
from tests.reference import held_weights


def test_every_use_draws_its_own() -> None:
    model, law = CASES["tied"].model(), Counting()
    wn.add_weight_noise(model, {"embed.weight": law, "head.weight": law})
    model(CASES["tied"].batch())
    assert len(law.draws) == 2


def test_under_a_hold_all_uses_share_one_draw_also_with_equal_laws_made_apart() -> None:
    model = wn.add_weight_noise(
        CASES["tied"].model(), lambda name, *_: None if "body" in name else wn.Gaussian(0.1)
    )
    weights = held_weights(model, 0)
    assert torch.equal(weights["embed.weight"], weights["head.weight"])
    assert not torch.equal(seen(model.embed), seen(model.head))


def test_laws_that_differ_draw_apart() -> None:
    model = wn.add_weight_noise(CASES["tied"].model(), {"embed.weight": 0.1, "head.weight": wn.Uniform(0.1)})
    assert not torch.equal(*held_weights(model, 0).values())


def test_both_gradients_land_on_the_one_parameter() -> None:
    model = wn.add_weight_noise(CASES["tied"].model(), {"embed.weight": 0.1, "head.weight": 0.1})
    model(CASES["tied"].batch()).sum().backward()
    assert model.embed._parameters["weight"] is model.head._parameters["weight"]
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "embed.weight",
        "body.weight",
        "body.bias",
    ]


def test_a_shared_module_gets_noise_once_and_draws_at_every_call() -> None:
    model, law = CASES["shared"].model(), Counting()
    wn.add_weight_noise(model, law)
    assert list(wn.noisy_parameters(model)) == ["first.weight"]
    model(CASES["shared"].batch())
    assert len(law.draws) == 2
    assert len(model.first.parametrizations.weight) == 1
    wn.remove_weight_noise(model)
    assert type(model.second) is nn.Linear


def test_two_names_of_one_parameter_in_one_module() -> None:
    model = nn.Module()
    model.first = nn.Parameter(torch.zeros(3, 3))
    model.second = model.first
    wn.add_weight_noise(model, 0.1)
    assert wn.plan_weight_noise(wn.remove_weight_noise(model), 0.1).rows[0].tied_with == ("second",)
    wn.add_weight_noise(model, 0.1)
    with wn.hold_noise(model):
        assert torch.equal(model.first, model.second)
    wn.remove_weight_noise(model)
    assert model.first is model.second


def shared_at_many_levels() -> nn.Module:
    """A layer that can be reached by a million names."""
    model: nn.Module = nn.Linear(8, 8)
    for _ in range(20):
        model = nn.Sequential(model, model)
    return model


def test_modules_that_are_shared_at_many_levels_are_walked_once() -> None:
    model, start = shared_at_many_levels(), time.process_time()
    wn.plan_weight_noise(model, 0.1)
    wn.add_weight_noise(model, 0.1)
    assert wn.has_weight_noise(model)
    assert len(wn.noisy_parameters(model)) == 1
    contexts = [wn.no_noise, wn.hold_noise, wn.force_noise, partial(wn.scale_noise, factor=0.5)]
    for context in (*contexts, partial(wn.hold_noise, seed=0), partial(wn.hold_noise, reads="fresh")):
        with context(model):
            pass
    wn.NoiseScheduler(model, lambda step: 0.5).step()
    assert wn.learned_strengths(model) == {}
    wn.clip_weights(model, 2.0)
    wn.step_along(model, 0, 0.1)
    wn.plan_activation_noise(model, 0.1)
    wn.add_activation_noise(model, 0.1)
    assert len(wn.noisy_activations(model)) == 1
    wn.remove_activation_noise(model)
    wn.remove_weight_noise(model)
    assert time.process_time() - start < 5
