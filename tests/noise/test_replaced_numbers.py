"""What puts other numbers, or nothing, in the place of a noisy weight is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import weightnoise as wn


def _by_data(weight: nn.Parameter, numbers: torch.Tensor) -> None:
    weight.data = numbers


def _as_often_changed(weight: nn.Parameter, numbers: torch.Tensor) -> nn.Parameter:
    """A Parameter that torch has counted as many changes of."""
    other = nn.Parameter(numbers)
    for _ in range(weight._version):
        other.mul_(1)
    return other


WAYS: dict[str, Callable[[nn.Parameter, torch.Tensor], None]] = {
    "data": _by_data,
    "swap_tensors": lambda weight, numbers: torch.utils.swap_tensors(weight, _as_often_changed(weight, numbers)),
}


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("way", WAYS)
def test_a_held_weight_follows_the_numbers_of_its_parameter(way: str, size: int) -> None:
    model: Any = wn.add_weight_noise(nn.Linear(size, size, bias=False), 0.05)
    weight, x = model._parameters["weight"], torch.eye(size)
    with wn.hold_noise(model, seed=0), torch.no_grad():
        noise, version = model(x) - weight.T, weight._version
        WAYS[way](weight, torch.zeros(size, size))
        assert weight._version == version
        torch.testing.assert_close(model(x), noise, rtol=0, atol=1e-6)  # The sum was rounded.


def _data_there_and_back(weight: nn.Parameter, numbers: torch.Tensor) -> None:
    """Memory that is given back is what the next tensor of the size gets."""
    weight.data = torch.empty(0)
    weight.data = numbers.clone()


def _half_and_float(weight: nn.Parameter, numbers: torch.Tensor) -> None:
    module = nn.ParameterList([weight])
    module.half().float()


def _functional_call(model: nn.Module, name: str, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.func.functional_call(model, {name: value}, (x,))
    return found


def _replaced(model: nn.Module, name: str, value: torch.Tensor, way: str, x: torch.Tensor) -> torch.Tensor:
    """The output once another value has been put in place of a Parameter in some way."""
    parameter = dict(model.named_parameters())[name]
    if way == "functional_call":
        return _functional_call(model, name, value, x)
    if way == "functional_call with a Parameter":
        return _functional_call(model, name, nn.Parameter(value), x)
    if way == "assign":
        model.load_state_dict({**model.state_dict(), name: value}, assign=True)
    elif way == "there and back":
        _data_there_and_back(parameter, value)
    elif way == "transposed":
        parameter.data = parameter.data.t()
    elif way == "half and float":
        _half_and_float(parameter, value)
    else:
        WAYS[way](parameter, value)
    found: torch.Tensor = model(x)
    return found


REPLACED = [
    "data",
    "swap_tensors",
    "assign",
    "there and back",
    "functional_call",
    "functional_call with a Parameter",
]


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("way", [*REPLACED, "transposed", "half and float"])
@pytest.mark.parametrize("name", ["weight", "parametrizations.weight.0.strength"])
def test_a_held_weight_follows_whatever_it_is_made_of(name: str, way: str, size: int) -> None:
    if name != "weight" and way == "transposed":
        pytest.skip("a strength for the tensor is a number")
    model: Any = wn.add_weight_noise(nn.Linear(size, size, bias=False), wn.ParametricNoise(0.1))
    value = 3 * dict(model.named_parameters())[name].detach() + 0.01
    x = torch.eye(size)
    with wn.hold_noise(model, seed=0):
        with torch.no_grad():
            before = [model(x) for _ in range(2)][-1]
            found = _replaced(model, name, value, way, x)
        expected = _functional_call(model, name, value, x) if "call" in way else model(x)
    assert not torch.equal(found, before)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=0)


def test_numbers_of_inference_mode_are_looked_at_each_time() -> None:
    model: Any = wn.add_weight_noise(nn.Linear(8, 8, bias=False), wn.ParametricNoise(0.1))
    name, x = "parametrizations.weight.0.strength", torch.eye(8)
    with wn.hold_noise(model, seed=0), torch.inference_mode():
        strength = dict(model.named_parameters())[name].clone()
        before = _functional_call(model, name, strength, x) - model._parameters["weight"].T
        strength.mul_(3.0)  # Not counted.
        after = _functional_call(model, name, strength, x) - model._parameters["weight"].T
    torch.testing.assert_close(after, 3 * before)


@pytest.mark.parametrize("size", [8, 64])
def test_a_read_at_rest_follows_memory_that_is_given_back(size: int) -> None:
    model: Any = wn.add_weight_noise(nn.Linear(size, size, bias=False), 0.05)
    weight, x = model._parameters["weight"], torch.eye(size)
    with wn.hold_noise(model, seed=0), torch.no_grad():
        noise = [model(x) for _ in range(2)][-1] - weight.T
        for fill in (1.0, 2.0, 3.0):
            _data_there_and_back(weight, torch.full((size, size), fill))
            for _ in range(2):
                torch.testing.assert_close(model(x), noise + fill, rtol=0, atol=1e-6)  # The sum was rounded.


@pytest.mark.parametrize("size", [8, 64])
def test_a_held_weight_follows_a_conversion(size: int) -> None:
    model: Any = wn.add_weight_noise(nn.Linear(size, size), 0.05)
    x = torch.eye(size)
    with wn.hold_noise(model, seed=0), torch.no_grad():
        before = model(x)
        after = model.double()(x.double())
        assert after.dtype == torch.float64
        torch.testing.assert_close(after, before.double(), rtol=0, atol=1e-6)


FOLDED: dict[str, tuple[Callable[[nn.Module], Any], Callable[[nn.Module], Any]]] = {
    "weight_orig": (lambda m: prune.l1_unstructured(m, "weight", 0.5), lambda m: prune.remove(m, "weight")),
    "weight_v": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("name", FOLDED)
def test_a_noisy_parameter_that_a_tool_deletes_is_named(name: str) -> None:
    fold, unfold = FOLDED[name]
    model = nn.Sequential(nn.Linear(8, 8))
    fold(model[0])
    wn.add_weight_noise(model, {f"0.{name}": 0.05})
    with pytest.warns(wn.LeftCleanWarning, match=rf"'0\.{name}' was deleted while 'weight' is put in its place"):
        unfold(model[0])
    wn.remove_weight_noise(model)
    assert type(model[0]) is nn.Linear
    wn.add_weight_noise(model, 0.05)
    assert not torch.equal(model(torch.eye(8)), model(torch.eye(8)))
