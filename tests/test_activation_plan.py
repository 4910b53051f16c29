"""The plan of noise on activations is what happens when it is added, and touches nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import weightnoise as wn
from tests.cases import CASES
from tests.test_activations import hooks, plain


@pytest.mark.parametrize("at", ["output", "input"])
@pytest.mark.parametrize("name", CASES)
def test_the_plan_is_what_happens(name: str, at: Any) -> None:
    model = CASES[name].model()
    before, state = hooks(model), torch.get_rng_state()
    spec: Any = lambda name, module: 0.1 if isinstance(module, nn.Linear) and "out_proj" not in name else None  # noqa: E731
    try:
        plan = wn.plan_activation_noise(model, spec, at=at)
    except wn.NoMatchError:
        with pytest.raises(wn.NoMatchError):
            wn.add_activation_noise(model, spec, at=at)
        return
    assert hooks(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    wn.add_activation_noise(model, spec, at=at)
    assert {(row.name, at): row.law for row in plan.rows} == wn.noisy_activations(model)
    assert plan.at == at


def test_what_stays_clean_are_the_layers_that_a_law_alone_would_cover() -> None:
    model = nn.Sequential(plain(), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    everything = wn.plan_activation_noise(model, 0.1)
    assert everything.clean == ()
    assert "1.self_attn.out_proj" not in [row.name for row in everything.rows]  # The attention never calls it.
    part = wn.plan_activation_noise(model, {nn.Tanh: 0.2, "0.*": 0.1})
    assert [row.module for row in part.rows] == ["Tanh", "Linear", "Linear"]
    assert part.clean == ("1.linear1", "1.linear2")


def test_one_module_in_two_places_is_one_row() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(3, 2))
    plan = wn.plan_activation_noise(model, {"2": wn.Uniform(0.5)}, at="input")
    assert [(row.name, row.other_names) for row in plan.rows] == [("0", ("2",))]
    assert str(plan) == (
        "input of  module  law                 also called\n"
        "--------  ------  ------------------  -----------\n"
        "0         Linear  Uniform(bound=0.5)  2\n"
        "1 module noisy; Linear and Conv layers clean: 3"
    )
    whole = wn.plan_activation_noise(nn.Tanh(), {"": 0.1})
    assert "the model  Tanh " in str(whole)


def test_what_is_no_model_or_no_side_is_refused() -> None:
    wrong: Any = [plain()]
    with pytest.raises(wn.OptionTypeError, match=r"model must be a torch\.nn\.Module, got list"):
        wn.plan_activation_noise(wrong, 0.1)
    wrong = "middle"
    with pytest.raises(wn.OptionError, match=r"plan_activation_noise\(at=...\) must be one of 'output', 'input'"):
        wn.plan_activation_noise(plain(), 0.1, at=wrong)
    with pytest.raises(wn.AlreadyNoisyError):
        wn.plan_activation_noise(wn.add_activation_noise(plain(), 0.1), 0.1)
