"""Noise beside other parametrizations of the same tensor."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

import weightnoise as wn
from weightnoise.testing import assert_restores

OTHERS = [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]


class Symmetric(nn.Module):
    """A parametrization that needs no setting up."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


@pytest.mark.parametrize("other", OTHERS)
def test_noise_on_top_of_another_parametrization(other: Any) -> None:
    model = other(nn.Linear(3, 3))
    assert_restores(model, 0.1)
    plain, cls, x = copy.deepcopy(model), type(model), torch.randn(2, 3)
    wn.add_weight_noise(model, 0.1)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert list(wn.noisy_parameters(model)) == ["weight"]
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    plain.eval()
    with wn.no_noise(model):
        clean = model.weight
    noise = model.weight - clean
    assert 0.02 < noise.std().item() < 0.3
    wn.remove_weight_noise(model)
    assert type(model) is cls
    assert parametrize.is_parametrized(model, "weight")
    parametrize.remove_parametrizations(model, "weight")
    assert type(model) is nn.Linear


def test_adding_noise_takes_no_step_of_the_power_iteration() -> None:
    model = parametrizations.spectral_norm(nn.Linear(3, 3)).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    wn.plan_weight_noise(model, 0.1)
    wn.add_weight_noise(model, 0.1)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("other", OTHERS)
def test_another_parametrization_on_top_of_noise_is_refused_and_changes_nothing(other: Any) -> None:
    model = wn.add_weight_noise(nn.Linear(3, 3), 0.1)
    keys = list(model.state_dict())
    with pytest.raises(RuntimeError, match="has to come before the noise"):
        other(model)
    assert list(model.state_dict()) == keys
    assert model(torch.ones(1, 3)).shape == (1, 3)
    assert type(wn.remove_weight_noise(model)) is nn.Linear


def test_a_parametrization_without_set_up_stacks_on_noise_and_survives_it() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 3), 0.1)
    weight = model._parameters["weight"]
    parametrize.register_parametrization(model, "weight", Symmetric())
    assert torch.equal(model.weight, model.weight.T) is False  # Two reads, two draws.
    read = model.weight
    assert torch.equal(read, read.T)
    copy.deepcopy(model)(torch.ones(1, 3))
    wn.remove_weight_noise(model)
    assert model.parametrizations.weight.original is weight
    assert torch.equal(model.weight, Symmetric()(weight))
    parametrize.remove_parametrizations(model, "weight", leave_parametrized=False)
    assert type(model) is nn.Linear
    assert model.weight is weight


@pytest.mark.parametrize("leave_parametrized", [True, False])
def test_torchs_own_removal(leave_parametrized: bool) -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1, min_ndim=1)
    twin = wn.add_weight_noise(nn.Linear(3, 2), 0.1, min_ndim=1)
    weight = model._parameters["weight"]
    before = model.state_dict()["weight"].clone()
    parametrize.remove_parametrizations(model, "weight", leave_parametrized=leave_parametrized)
    assert model.weight is weight
    assert torch.equal(model.weight, before) is not leave_parametrized
    assert list(wn.noisy_parameters(model)) == ["bias"]
    assert model(torch.ones(1, 3)).shape == (1, 2)
    parametrize.remove_parametrizations(model, "bias", leave_parametrized=leave_parametrized)
    assert type(model) is nn.Linear
    assert set(vars(model)) == set(vars(nn.Linear(3, 2)))
    assert list(model.state_dict()) == ["weight", "bias"]
    assert not torch.equal(twin.weight, twin.weight)
    assert not torch.equal(twin.bias, twin.bias)


def test_torch_parametrizing_a_sibling_leaves_modules_of_the_same_class_alone() -> None:
    model, twin = (wn.add_weight_noise(nn.Linear(3, 2), 0.1) for _ in range(2))
    assert type(model) is type(twin)
    parametrize.register_parametrization(model, "bias", nn.Tanh())
    assert "bias" not in vars(type(twin))
    assert torch.equal(model.bias, torch.tanh(model.parametrizations.bias.original))
    assert twin.bias is twin._parameters["bias"]
    twin.bias = nn.Parameter(torch.zeros(2))
    assert twin(torch.zeros(1, 3)).tolist() == [[0.0, 0.0]]
    other = copy.deepcopy(model)
    wn.remove_weight_noise(model)
    assert torch.equal(model.bias, torch.tanh(model.parametrizations.bias.original))
    assert not parametrize.is_parametrized(model, "weight")
    assert wn.has_weight_noise(other)
    wn.remove_weight_noise(other)
    parametrize.remove_parametrizations(model, "bias")
    assert_close(other.bias, torch.tanh(other.parametrizations.bias.original))


def test_a_copy_of_a_stacked_module_is_independent() -> None:
    model = wn.add_weight_noise(parametrizations.weight_norm(nn.Linear(3, 3)), 0.1)
    other = copy.deepcopy(model)
    parametrize.remove_parametrizations(wn.remove_weight_noise(other), "weight")
    assert type(other) is nn.Linear
    assert not torch.equal(model(torch.ones(1, 3)), model(torch.ones(1, 3)))
    wn.remove_weight_noise(model)
    assert torch.equal(model(torch.ones(1, 3)), model(torch.ones(1, 3)))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("old", [nn.utils.weight_norm, lambda m: prune.l1_unstructured(m, "weight", 0.5)])
def test_old_style_hooks_before_noise_work_and_after_noise_are_an_error(old: Any) -> None:
    model = wn.add_weight_noise(old(nn.Linear(3, 3)), 0.1)
    assert not torch.equal(model(torch.ones(1, 3)), model(torch.ones(1, 3)))
    wn.remove_weight_noise(model)
    assert torch.equal(model(torch.ones(1, 3)), model(torch.ones(1, 3)))
    with pytest.raises(TypeError, match="cannot assign"):
        old(wn.add_weight_noise(nn.Linear(3, 3), 0.1))
