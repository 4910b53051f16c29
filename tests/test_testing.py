"""The checks that users are given find what they are meant to find."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import weightnoise as wn
from tests.cases import BIASED, CASES, LAWS, LINEAR, single_loss
from weightnoise.laws._spec import as_law
from weightnoise.testing import (
    _restores,
    assert_noise_arrives,
    assert_restores,
    assert_unbiased,
    check_gradients,
    check_law,
)


@dataclass(frozen=True)
class Additive:
    """A law of a user's own: two methods, nothing inherited."""

    shift: float = 0.0
    leak: float = 0.0

    def draw(self, weight: Tensor) -> Tensor:
        return torch.randn(weight.shape, dtype=weight.dtype)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        return weight + factor * (0.1 * noise + self.shift) + self.leak * (weight - weight.detach())


def test_a_law_of_ones_own_passes() -> None:
    assert isinstance(Additive(), wn.Noise)
    assert_unbiased(Additive(), torch.randn(4, 4))
    model = wn.add_weight_noise(CASES["mlp"].model(), Additive())
    check_gradients(model, single_loss, CASES["mlp"].batch())


def test_check_gradients_finds_a_wrong_gradient_and_names_it() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), {"weight": Additive(leak=0.01)})
    with pytest.raises(AssertionError, match=r"Gradient of 'weight' at entry \d: training uses"):
        check_gradients(model, single_loss, torch.randn(4, 3))


def test_check_gradients_finds_weights_restored_before_the_backward() -> None:
    class RestoresTooEarly(nn.Module):
        """The home-made loop: in-place noise that is taken away before the backward."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.last = wn.add_weight_noise(nn.Linear(3, 3), 0.1)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.tanh(self.first(x))
            clean = self.last._parameters["weight"]
            assert clean is not None
            noisy = self.last.weight.detach() - clean.detach()
            output: Tensor = hidden @ (clean.detach() + noisy).T + (hidden @ (clean - clean.detach()).T) * 0.5
            return output

    with pytest.raises(AssertionError, match=r"Gradient of 'last.weight'"):
        check_gradients(RestoresTooEarly(), single_loss, torch.randn(4, 3))


def test_check_gradients_leaves_the_model_and_the_random_state() -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3)), 0.1)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    check_gradients(model, single_loss, torch.randn(4, 3))
    torch.set_rng_state(state)
    check_gradients(model, single_loss, torch.ones(4, 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_check_gradients_sees_through_other_parametrizations() -> None:
    for make in (parametrizations.weight_norm, parametrizations.orthogonal):
        model = wn.add_weight_noise(make(nn.Linear(3, 3)), wn.Gaussian(0.1, relative_to="absmax"))
        check_gradients(model, single_loss, torch.randn(4, 3))


def test_check_gradients_needs_noise() -> None:
    with pytest.raises(wn.NotNoisyError):
        check_gradients(nn.Linear(3, 2), single_loss, torch.randn(4, 3))


@pytest.mark.parametrize("first", [wn.DropConnect(0.5), wn.Gaussian(0.1, relative_to="absmax")])
def test_check_gradients_takes_each_law_of_a_list_at_its_word(first: wn.Noise) -> None:
    laws: list[wn.Noise] = [first, wn.Gaussian(0.1, relative_to="value", gradient="exact")]
    check_gradients(wn.add_weight_noise(nn.Linear(3, 2), laws), single_loss, torch.randn(4, 3))
    laws = [first, Additive(leak=0.01)]
    with pytest.raises(AssertionError, match="Gradient of 'weight'"):
        check_gradients(wn.add_weight_noise(nn.Linear(3, 2), laws), single_loss, torch.randn(4, 3))


@pytest.mark.parametrize("shift", [0.02, -0.02])
def test_assert_unbiased_finds_a_bias(shift: float) -> None:
    with pytest.raises(AssertionError, match="is biased"):
        assert_unbiased(Additive(shift=shift), torch.randn(4, 4))


def test_assert_unbiased_finds_a_fixed_bias_and_a_bias_of_one_element() -> None:
    with pytest.raises(AssertionError, match="inf"):
        assert_unbiased(wn.Custom(lambda w: w + 1), torch.zeros(3))

    def one(weight: Tensor) -> Tensor:
        moved = weight + 0.1 * torch.randn_like(weight)
        return moved + 0.05 * torch.eye(1, weight.numel(), dtype=weight.dtype).reshape(weight.shape)

    with pytest.raises(AssertionError, match="is biased"):
        assert_unbiased(wn.Custom(one), torch.zeros(20, 20))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda model: model.weight.data.add_(1), "parameter 'weight'"),
        (lambda model: setattr(model, "weight", nn.Parameter(model.weight.detach().clone())), "parameters"),
        (lambda model: setattr(model, "extra", 1), "attributes of ''"),
        (lambda model: model.register_forward_hook(print), "attributes of ''"),
        (lambda model: torch.rand(1), "torch's random state"),
        (lambda model: model.requires_grad_(False), "parameter 'weight'"),
        (lambda model: setattr(model, "__class__", type("Other", (nn.Linear,), {})), "class of ''"),
    ],
)
def test_assert_restores_finds_what_is_not_restored(
    monkeypatch: pytest.MonkeyPatch, damage: Any, text: str
) -> None:
    def damaging(model: nn.Module) -> nn.Module:
        wn.remove_weight_noise(model)
        damage(model)
        return model

    monkeypatch.setattr(_restores, "remove_weight_noise", damaging)
    with pytest.raises(AssertionError, match=text):
        assert_restores(nn.Linear(3, 2), 0.1)


@pytest.mark.parametrize("name", LAWS)
def test_every_law_keeps_what_the_library_expects(name: str) -> None:
    law = as_law(LAWS[name])
    assert law is not None
    check_law(law, unbiased=name not in BIASED, linear=name in LINEAR)


@dataclass(frozen=True)
class Broken:
    """A law with one fault."""

    fault: str

    def draw(self, weight: Tensor) -> Tensor:
        if self.fault == "numpy":
            return torch.tensor(numpy.random.standard_normal(weight.shape), dtype=weight.dtype)
        noise = torch.randn(weight.shape, dtype=weight.dtype)
        return noise.requires_grad_() if self.fault == "gradient" else noise

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        if self.fault == "dtype":
            return weight + factor * noise.double()
        if self.fault == "late":
            return weight + factor * torch.randn(weight.shape, dtype=weight.dtype)
        if self.fault == "in place":
            return weight.add_(factor * noise)
        if self.fault == "factor":
            return weight + factor**2 * noise
        if self.fault == "mean":
            return weight + factor * (noise + 1)
        if self.fault == "infinite":
            return weight + factor * noise / 0
        if self.fault == "wrong gradient":
            return (weight + factor * noise).detach() + 2 * (weight - weight.detach())
        return weight + factor * noise


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("numpy", "from elsewhere than torch"),
        ("gradient", "draw returned something with a gradient"),
        ("dtype", "a torch.float16 weight of shape \\(6, 8\\) became torch.float64"),
        ("late", "apply drew random numbers"),
        ("in place", "edited in place"),
        ("factor", "a factor of 2 does not give 2 times the noise"),
        ("mean", "is biased"),
        ("infinite", "is not finite"),
        ("wrong gradient", "Gradient of 'weight'"),
    ],
)
def test_check_law_finds_each_fault(fault: str, text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        check_law(Broken(fault))


def test_check_law_passes_a_sound_law_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    check_law(Broken("none"))
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(AssertionError, match="is declared biased"):
        check_law(Broken("none"), unbiased=False)


class Past(nn.Module):
    """Uses one weight past its attribute, and another one in a method that is no forward."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first, self.unused = nn.Linear(size, size), nn.Linear(size, size)
        self.kept, self.scale = [self.first.weight], nn.Parameter(torch.randn(size, size))

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"found": [x @ self.kept[0], None]}

    def scores(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.first(x)
        return hidden @ self.scale


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.filterwarnings("ignore::weightnoise.CleanReadWarning")
def test_noise_that_never_arrives_is_named(size: int) -> None:
    model, x = Past(size), torch.randn(3, size)
    with pytest.raises(wn.NotNoisyError):
        assert_noise_arrives(model, x)
    wn.add_weight_noise(model, 0.1, when="training").eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(AssertionError, match=r"from 'first\.weight', although"):
        assert_noise_arrives(model, x)
    with pytest.raises(AssertionError, match=r"from 'scale', although"):
        assert_noise_arrives(model, call=model.scores, x=x)

    def held(x: Tensor) -> Tensor:
        with wn.hold_noise(model):
            return model.scores(x)

    assert_noise_arrives(model, x, call=held)
    assert all(torch.equal(*pair) for pair in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("case", CASES)
def test_noise_arrives_in_every_model(case: str) -> None:
    model = wn.add_weight_noise(CASES[case].model(), 0.5)
    assert_noise_arrives(model, CASES[case].batch())


@pytest.mark.parametrize("size", [8, 64])
def test_checked_gradients_are_a_table(size: int) -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(size, size), nn.Linear(size, 2)), 0.1)
    table = check_gradients(model, lambda model, x: model(x).square().mean(), torch.randn(4, size), max_entries=5)
    assert list(table.rows) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert [row.entries for row in table.rows.values()] == [5, 5, 5, 2]
    assert all(row.error <= 1e-7 + 1e-5 * row.largest for row in table.rows.values())
    assert all(row.largest > 0 for row in table.rows.values())
    lines = str(table).splitlines()
    assert lines[0].split() == ["entries", "largest", "gradient", "largest", "error"]
    assert [line.split()[0] for line in lines[1:]] == list(table.rows)
