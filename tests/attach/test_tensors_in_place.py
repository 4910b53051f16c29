"""A plain tensor in the Parameter's place, as tensordict and hand-written functional code put it there."""

from __future__ import annotations

import abc
import pickle
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn

SIZES = [8, 64]


@contextmanager
def in_dict(module: nn.Module, name: str, tensor: Tensor) -> Iterator[None]:
    """The tensor in the module's dict, the Parameter away: tensordict with preserve_module_state=False."""
    kept = dict(module._parameters)
    del module._parameters[name]
    module.__dict__[name] = tensor
    try:
        yield
    finally:
        del module.__dict__[name]
        module._parameters.clear()
        module._parameters.update(kept)


@contextmanager
def over_parameter(module: nn.Module, name: str, tensor: Tensor) -> Iterator[None]:
    """The tensor in the module's dict, which hides the Parameter of a plain module."""
    module.__dict__[name] = tensor
    try:
        yield
    finally:
        del module.__dict__[name]


@contextmanager
def in_parameters(module: nn.Module, name: str, tensor: Tensor) -> Iterator[None]:
    """The tensor among the Parameters: tensordict with preserve_module_state=True."""
    kept = module._parameters[name]
    module._parameters[name] = tensor  # type: ignore[assignment]
    try:
        yield
    finally:
        module._parameters[name] = kept


PLACES: list[Callable[..., Any]] = [in_dict, over_parameter, in_parameters]
OPTIONS: dict[str, dict[str, Any]] = {
    "shared": {},
    "flipout": {"estimator": "flipout"},
    "local": {"estimator": "local"},
    "recompute": {"memory": "recompute"},
    "training": {"when": "training"},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_the_place_gets_the_noise(place: Callable[..., Any], options: Any, size: int) -> None:
    layer = wn.add_weight_noise(nn.Linear(size, size), 0.5, **options)
    before = layer._parameters["weight"]
    x = torch.randn(3, size)
    tensor = torch.randn(size, size, requires_grad=True)
    with place(layer, "weight", tensor):
        assert not torch.equal(layer(x), layer(x))
        with wn.no_noise(layer):
            assert layer.weight is tensor
            assert torch.equal(layer(x), nn.functional.linear(x, tensor, layer.bias))
        with wn.hold_noise(layer, seed=3):
            out = layer(x)
            assert torch.equal(out, layer(x))
        out.sum().backward()
        torch.testing.assert_close(tensor.grad, x.sum(dim=0).expand(size, size))
    assert layer._parameters["weight"] is before
    assert before.grad is None
    assert not torch.equal(layer(x), layer(x))
    with wn.no_noise(layer):
        assert layer.weight is before


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", PLACES)
def test_held_noise_is_that_of_the_parameter(place: Callable[..., Any], size: int) -> None:
    layer = wn.add_weight_noise(nn.Linear(size, size, bias=False), 0.5)
    eye, zero = torch.eye(size), torch.zeros(size, size)
    with wn.no_noise(layer), torch.no_grad():
        layer.weight.zero_()
    with wn.hold_noise(layer, seed=3):
        expected = layer(eye)
        with place(layer, "weight", zero):
            assert torch.equal(layer(eye), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", PLACES)
def test_the_rows_of_an_embedding_are_those_that_stand_there(place: Callable[..., Any], size: int) -> None:
    table = wn.add_weight_noise(nn.Embedding(64 * size, size), 0.5)
    tensor = torch.full((64 * size, size), 100.0)
    with place(table, "weight", tensor):
        first, second = table(torch.tensor([1, 2])), table(torch.tensor([1, 2]))
        assert not torch.equal(first, second)
        with wn.no_noise(table):
            assert torch.equal(table(torch.tensor([1, 2])), tensor[:2])
        assert (first - 100.0).abs().max() < 5.0  # Ten standard deviations.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", PLACES)
def test_a_bilinear_layer_too(place: Callable[..., Any], size: int) -> None:
    holder = wn.add_weight_noise(nn.Bilinear(size, 2, 3), {"weight": 0.5})
    tensor = torch.zeros(3, size, 2)
    with place(holder, "weight", tensor), wn.hold_noise(holder, seed=1):
        out = holder(torch.ones(1, size), torch.ones(1, 2))
        assert torch.equal(out, holder(torch.ones(1, size), torch.ones(1, 2)))
        assert (out - holder.bias).abs().sum() > 0


def test_assignment_in_the_place_stays_there() -> None:
    layer = wn.add_weight_noise(nn.Linear(8, 8), 0.5)
    with in_dict(layer, "weight", torch.zeros(8, 8)):
        layer.weight = torch.ones(8, 8)  # type: ignore[assignment]
        assert torch.equal(layer.__dict__["weight"], torch.ones(8, 8))
    with pytest.raises(TypeError, match="cannot assign"):
        layer.weight = torch.ones(8, 8)  # type: ignore[assignment]


def test_compiled_code_reads_what_stands_there() -> None:
    layer = wn.add_weight_noise(nn.Linear(8, 8, bias=False), 0.5)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.eye(8)
    with wn.no_noise(layer):
        assert torch.equal(compiled(x), nn.functional.linear(x, layer.weight))
        for place in PLACES:
            with place(layer, "weight", torch.zeros(8, 8)):
                assert torch.equal(compiled(x), torch.zeros(8, 8))


class Mixed(abc.ABC):
    """An abstract class to mix in."""

    @abc.abstractmethod
    def extra(self) -> int:
        """A method to define."""


def test_an_abstract_class_is_mixed_into_a_noisy_class_as_into_its_base() -> None:
    layer = wn.add_weight_noise(nn.Linear(8, 8), 0.5)
    for cls in (nn.Linear, type(layer)):
        made = types.new_class("Made", (cls, Mixed), {}, lambda body: body.update(extra=lambda self: 3))
        assert made(8, 8).extra() == 3
        with pytest.raises(TypeError, match="abstract"):
            types.new_class("Open", (cls, Mixed))(8, 8)


class Outer:
    """A class with a class in it."""

    class Inner(nn.Linear):
        """A layer with a qualified name."""


@pytest.mark.parametrize("cls", [nn.Linear, Outer.Inner])
def test_a_noisy_class_shows_what_its_base_shows(cls: type[nn.Linear]) -> None:
    layer = wn.add_weight_noise(cls(8, 8), 0.5)
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(type(layer), name) == getattr(cls, name)
    assert str(type(layer)) == str(cls)
    assert type(layer) is not cls
    assert type(pickle.loads(pickle.dumps(layer))) is type(layer)
    wn.remove_weight_noise(layer)
    assert type(layer) is cls
