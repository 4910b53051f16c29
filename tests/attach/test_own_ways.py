"""Modules that replace, re-parametrize or copy weights in ways of their own: right, or one clear sentence."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import weightnoise as wn

SIZES = [8, 64]


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


def replaced_by_a_tensor(layer: nn.Linear) -> None:
    weight = layer._parameters.pop("weight")
    assert weight is not None
    layer.register_parameter("weight_v", nn.Parameter(weight.detach()))
    layer.weight = layer.weight_v * 2  # type: ignore[assignment, operator]


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "weight_norm": (parametrizations.weight_norm, "has to come before the noise"),
    "spectral_norm": (parametrizations.spectral_norm, "has to come before the noise"),
    "orthogonal": (parametrizations.orthogonal, "has to come before the noise"),
    "weight_norm_by_hooks": (weight_norm, "has to be registered before the noise"),
    "spectral_norm_by_hooks": (spectral_norm, "has to be registered before the noise"),
    "tensor": (replaced_by_a_tensor, "has to be registered before the noise"),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", REFUSED)
def test_weights_that_are_made_of_others_come_before_the_noise(how: str, size: int) -> None:
    register, text = REFUSED[how]
    layer = wn.add_weight_noise(nn.Linear(size, size), 0.1)
    with pytest.raises((RuntimeError, TypeError), match=text):
        register(layer)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_stacked_on_the_noise_and_new_parameters_are_right(size: int) -> None:
    layer = wn.add_weight_noise(nn.Linear(size, size), 0.1)
    layer.weight = nn.Parameter(torch.zeros(size, size))
    layer.bias = None
    x = torch.ones(1, size)
    assert layer(x).any()
    assert layer(x).abs().max() < 10 * 0.1 * size**0.5
    parametrize.register_parametrization(layer, "weight", Symmetric())

    class Reads(nn.Module):
        def forward(self) -> Any:
            return layer.weight

    weight = Reads()()
    assert torch.equal(weight, weight.T)
    assert weight.any()


class Normalises(nn.Linear):
    """Puts a new Parameter in place in its forward, as some layers of constant norm do."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight = nn.Parameter(self.weight / self.weight.norm())
        return super().forward(x)


class InPlace(nn.Linear):
    """The same Parameter, put in place again."""

    def forward(self, x: Tensor) -> Tensor:
        self.register_parameter("weight", self._parameters["weight"])
        return super().forward(x)


@pytest.mark.parametrize("size", SIZES)
def test_a_forward_that_replaces_its_weight_is_refused(size: int) -> None:
    model = wn.add_weight_noise(nn.Sequential(Normalises(size, size)), 0.1)
    before = model[0].weight
    x = torch.randn(2, size)
    with pytest.raises(wn.UnsupportedParameterError, match=r"'0.weight' noisy puts another Parameter"):
        model(x)
    assert model[0].weight is before
    with wn.no_noise(model):
        model(x)
    torch.testing.assert_close(model[0].weight.norm(), torch.ones(()))
    same = wn.add_weight_noise(InPlace(size, size), 0.1)
    assert not torch.equal(same(x), same(x))


class RefusesByReduce(nn.Linear):
    def __reduce__(self) -> Any:
        raise TypeError("cannot be copied")


class RefusesByDeepcopy(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot be copied")


class KeepsAGenerator(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.steps = (step for step in range(3))


class KeepsAResult(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.cached = self.weight * 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("make", [RefusesByReduce, RefusesByDeepcopy, KeepsAGenerator, KeepsAResult])
def test_modules_that_forbid_copies_forbid_them_with_noise(make: Any, inside: bool, size: int) -> None:
    for noisy in (False, True):
        model: nn.Module = nn.Sequential(make(size, size)) if inside else make(size, size)
        if noisy:
            wn.add_weight_noise(model, 0.1)
        with pytest.raises((TypeError, RuntimeError)):
            copy.deepcopy(model)
        if make is RefusesByReduce:
            with pytest.raises(TypeError, match="cannot be copied"):
                pickle.dumps(model)


LAWS = [
    wn.Gaussian(0.1),
    wn.Gaussian(0.1, relative_to="absmax"),
    wn.Gaussian(0.1, relative_to="std", per=0),
    wn.Quantize(4),
    wn.DropConnect(0.1),
    wn.StuckAt(0.1),
    wn.ProgrammingNoise(),
    wn.Clip(1.0),
    wn.LearnedGaussian(),
    wn.Variational(),
    wn.ParametricNoise(),
    wn.Protect(wn.Gaussian(0.1), 0.5),
]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_dimensions_of_size_zero(law: Any, shape: tuple[int, int]) -> None:
    model = nn.Linear(*reversed(shape), bias=False)
    wn.plan_weight_noise(model, law)
    wn.add_weight_noise(model, law)
    x = torch.randn(2, shape[1])
    model(x).sum().backward()
    with wn.hold_noise(model, seed=1), torch.no_grad():
        assert model(x).shape == (2, shape[0])
    wn.remove_weight_noise(model, bake=True)
