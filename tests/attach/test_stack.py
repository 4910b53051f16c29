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
from tests.helpers import seen
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
    noise = seen(model) - clean
    assert 0.02 < noise.std().item() < 0.3
    wn.remove_weight_noise(model)
    assert type(model) is cls
    assert parametrize.is_parametrized(model, "weight")
    parametrize.remove_parametrizations(model, "weight")
    assert type(model) is nn.Linear


@pytest.mark.parametrize("other", OTHERS)
def test_the_gradient_passes_both_the_noise_and_the_other_parametrization(other: Any) -> None:
    model = other(nn.Linear(3, 3)).eval()  # In training a spectral norm changes at every read.
    plain, x = copy.deepcopy(model), torch.randn(4, 3)
    wn.add_weight_noise(model, 0.1)
    with wn.hold_noise(model, seed=0):
        noise = (model.weight - plain.weight).detach()
        model(x).square().sum().backward()
    nn.functional.linear(x, plain.weight + noise, plain.bias).square().sum().backward()
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(found.grad, expected.grad)


def test_noise_adds_no_step_of_the_power_iteration_to_a_forward() -> None:
    model = parametrizations.spectral_norm(nn.Linear(30, 20)).train()  # Large enough not to have converged.
    plain, x = copy.deepcopy(model), torch.randn(2, 30)
    wn.add_weight_noise(model, 0.1)
    for _ in range(3):
        model(x), plain(x)
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), plain.buffers(), strict=True))


def test_adding_noise_takes_no_step_of_the_power_iteration() -> None:
    model = parametrizations.spectral_norm(nn.Linear(30, 20)).train()
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
    assert torch.equal(seen(model), seen(model).T) is False  # Two reads, two draws.
    read = seen(model)
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
    assert torch.equal(model.weight, before)
    assert list(wn.noisy_parameters(model)) == ["bias"]
    assert model(torch.ones(1, 3)).shape == (1, 2)
    parametrize.remove_parametrizations(model, "bias", leave_parametrized=leave_parametrized)
    assert type(model) is nn.Linear
    assert set(vars(model)) == set(vars(nn.Linear(3, 2)))
    assert list(model.state_dict()) == ["weight", "bias"]
    assert not torch.equal(seen(twin), seen(twin))
    assert not torch.equal(seen(twin, "bias"), seen(twin, "bias"))


@pytest.mark.parametrize("leave_parametrized", [True, False])
def test_ours_after_torchs_own_removal_of_one_of_two(leave_parametrized: bool) -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1, min_ndim=1)
    parameters = list(model.parameters())
    parametrize.remove_parametrizations(model, "bias", leave_parametrized=leave_parametrized)
    with wn.no_noise(model):
        assert model.weight is parameters[0]
    assert not torch.equal(seen(model), seen(model))
    wn.remove_weight_noise(model)
    assert type(model) is nn.Linear
    assert all(now is before for now, before in zip(model.parameters(), parameters, strict=True))


def test_torchs_own_removal_takes_a_whole_stack() -> None:
    model = wn.add_weight_noise(parametrizations.weight_norm(nn.Linear(3, 2)), 0.1)
    parametrize.remove_parametrizations(model, "weight")
    assert type(model) is nn.Linear
    assert isinstance(model.weight, nn.Parameter)
    assert not wn.has_weight_noise(model)


def test_noise_can_come_back_after_torchs_own_removal_beside_a_parametrized_sibling() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    parametrize.register_parametrization(model, "bias", nn.Tanh())
    parametrize.remove_parametrizations(model, "weight", leave_parametrized=False)
    assert not wn.has_weight_noise(model)
    with pytest.raises(wn.NotNoisyError), wn.scale_noise(model, 2.0):
        pass
    wn.add_weight_noise(model, 0.2)
    assert wn.noisy_parameters(model) == {"weight": wn.Gaussian(0.2)}
    assert not torch.equal(seen(model), seen(model))
    wn.remove_weight_noise(model)
    assert isinstance(model.weight, nn.Parameter)
    assert torch.equal(model.bias, torch.tanh(model.parametrizations.bias.original))


class Optional(nn.Module):
    """Its scale is a Parameter in some instances and a plain attribute in others."""

    def __init__(self, scale: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.scale is None else x @ self.weight * self.scale


def test_torch_parametrizing_a_sibling_does_not_hide_plain_attributes_of_other_modules() -> None:
    first = wn.add_weight_noise(Optional(nn.Parameter(torch.ones(3))), {"weight": 0.1})
    second = wn.add_weight_noise(Optional(None), {"weight": 0.1})
    assert type(first) is type(second)
    parametrize.register_parametrization(first, "scale", nn.Tanh())
    assert second.scale is None
    assert first(torch.ones(1, 3)).shape == second(torch.ones(1, 3)).shape


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
@pytest.mark.parametrize(
    ("old", "text"),
    [
        (nn.utils.weight_norm, "has to be registered before the noise"),
        (lambda m: prune.l1_unstructured(m, "weight", 0.5), "cannot assign"),
    ],
)
def test_old_style_hooks_before_noise_work_and_after_noise_are_an_error(old: Any, text: str) -> None:
    model = wn.add_weight_noise(old(nn.Linear(3, 3)), 0.1)
    assert not torch.equal(model(torch.ones(1, 3)), model(torch.ones(1, 3)))
    wn.remove_weight_noise(model)
    assert torch.equal(model(torch.ones(1, 3)), model(torch.ones(1, 3)))
    with pytest.raises(TypeError, match=text):
        old(wn.add_weight_noise(nn.Linear(3, 3), 0.1))


def test_prune_after_noise_changes_nothing() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 3), 0.1)
    before = [(name, id(tensor)) for name, tensor in model.state_dict(keep_vars=True).items()]
    with pytest.raises(TypeError, match="cannot assign"):
        prune.l1_unstructured(model, "weight", 0.5)
    assert [(name, id(tensor)) for name, tensor in model.state_dict(keep_vars=True).items()] == before
    assert not model._forward_pre_hooks
    assert_close(wn.remove_weight_noise(model)(torch.zeros(1, 3))[0], model.bias)


def test_pruned_weights_stay_zero_and_pruning_can_be_made_final_inside_no_noise() -> None:
    model = prune.l1_unstructured(nn.Linear(3, 3), "weight", 4)
    pruned = model.weight.detach().clone()
    wn.add_weight_noise(model, 0.1)
    model(torch.ones(1, 3))
    assert torch.equal(model.weight == 0, pruned == 0)
    with wn.no_noise(model), pytest.warns(wn.LeftCleanWarning, match="'weight_orig' was deleted"):
        prune.remove(model, "weight")
    assert torch.equal(model.weight, pruned)
    wn.remove_weight_noise(model)
    assert type(model) is nn.Linear
    assert torch.equal(model.weight, pruned)
