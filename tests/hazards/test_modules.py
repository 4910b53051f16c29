"""Modules that read the weights of others, rewrite themselves, or hold parameters of odd kinds."""

from __future__ import annotations

import abc
import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn
from tests.hazards.helpers import Counting
from tests.reference import held_weights, plain_copy_with
from weightnoise.testing import assert_restores


@pytest.mark.parametrize("training", [True, False])
def test_multihead_attention_draws_its_projection_once(training: bool) -> None:
    attention, law = nn.MultiheadAttention(4, 2).train(training), Counting()
    wn.add_weight_noise(attention, {"in_proj_weight": law})
    for forwards in (1, 2):
        x = torch.randn(3, 2, 4)
        attention(x, x, x)
        assert len(law.draws) == forwards


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_attention_layers_use_the_noisy_weights_on_every_path(training: bool, grad: bool) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).train(training)
    wn.add_weight_noise(layer, 0.1)
    plain, x = plain_copy_with(layer, held_weights(layer, 0)), torch.randn(2, 3, 4)
    with torch.set_grad_enabled(grad), wn.hold_noise(layer, seed=0):
        assert_close(layer(x), plain(x))
    assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
def test_the_padding_row_stays_clean(make: Any) -> None:
    model = wn.add_weight_noise(make(5, 3, padding_idx=1), 0.1)
    clean = model._parameters["weight"]
    moved = (model.weight != clean).all(dim=1)
    assert moved.tolist() == [True, False, True, True, True]
    model(torch.tensor([[0, 1, 2]])).sum().backward()
    assert torch.equal(clean.grad[1], torch.zeros(3))


def test_sparse_gradients_pass() -> None:
    for law in (wn.Gaussian(0.1), wn.Gaussian(0.1, relative_to="value", gradient="exact")):
        model = wn.add_weight_noise(nn.Embedding(5, 3, sparse=True, padding_idx=1), law)
        model(torch.tensor([0, 2, 2])).sum().backward()
        assert model._parameters["weight"].grad.is_sparse


@pytest.mark.parametrize(
    "parameter",
    [
        torch.tensor(2.0),
        torch.zeros(0, 3),
        torch.zeros(3, 3, device="meta"),
        torch.randn(3, 3, dtype=torch.float64),
        torch.randn(1, 2, 3, 3).to(memory_format=torch.channels_last),
    ],
    ids=["scalar", "empty", "meta", "float64", "channels_last"],
)
@pytest.mark.parametrize("requires_grad", [True, False])
def test_odd_but_fine_parameters(parameter: Tensor, requires_grad: bool) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(parameter, requires_grad=requires_grad)
    wn.add_weight_noise(module, wn.Gaussian(0.1, relative_to="absmax"), min_ndim=0)
    noisy = module.weight
    assert (noisy.shape, noisy.dtype, noisy.device) == (parameter.shape, parameter.dtype, parameter.device)
    assert noisy.requires_grad == requires_grad
    wn.remove_weight_noise(module)
    assert isinstance(module.weight, nn.Parameter)


def test_a_parameter_that_is_none_stays_none() -> None:
    model = nn.Linear(3, 2, bias=False)
    assert list(wn.noisy_parameters(wn.add_weight_noise(model, 0.1, min_ndim=0))) == ["weight"]
    model = wn.add_weight_noise(nn.Linear(3, 2), {"bias": 0.1})
    model.bias = None
    assert model.bias is None
    assert model(torch.ones(1, 3)).shape == (1, 2)


def test_a_deleted_parameter_is_missing() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    del model.weight
    with pytest.raises(AttributeError, match="no attribute 'weight'"):
        _ = model.weight


def test_a_wrapper_with_a_delegating_getattr() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.own = nn.Parameter(torch.randn(2, 2))

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.inner(x) @ self.own
            return output

    model = Wrapper(nn.Linear(3, 2))
    assert_restores(model, 0.1)
    wn.add_weight_noise(model, {"inner.weight": 0.1})
    wn.add_weight_noise(model, {"own": 0.1})
    assert "weight" not in vars(Wrapper)
    assert not torch.equal(model(torch.ones(1, 3)), model(torch.ones(1, 3)))
    wn.remove_weight_noise(model)
    assert type(model) is Wrapper


def test_classes_that_resist_leave_the_model_as_it_was() -> None:
    class NoParametrizations(nn.Linear):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "parametrizations":
                raise RuntimeError("no parametrizations")
            super().__setattr__(name, value)

    class NoSubclasses(nn.Linear):
        def __init_subclass__(cls) -> None:
            raise RuntimeError("no subclasses")

    for resisting, text in ((NoParametrizations, "no parametrizations"), (NoSubclasses, "no subclasses")):
        model = nn.Sequential(nn.Linear(2, 2), resisting(2, 2))
        before = [(type(m), *m._parameters.items()) for m in model.modules()]
        with pytest.raises(RuntimeError, match=text):
            wn.add_weight_noise(model, 0.1)
        assert repr([(type(m), *m._parameters.items()) for m in model.modules()]) == repr(before)
        assert not wn.has_weight_noise(model)
        assert "parametrizations" not in model[0]._modules


def test_abstract_classes_metaclasses_and_slots() -> None:
    class Meta(type):
        pass

    class Abstract(nn.Linear, abc.ABC):
        pass

    class WithMeta(nn.Linear, metaclass=Meta):
        pass

    class WithSlots(nn.Linear):
        __slots__ = ("extra",)

    for cls in (Abstract, WithMeta, WithSlots):
        model = cls(3, 2)
        assert_restores(model, 0.1)
        wn.add_weight_noise(model, 0.1)
        assert isinstance(type(model), type(cls))
        assert not torch.equal(model(torch.ones(1, 3)), model(torch.ones(1, 3)))


def test_a_model_made_from_the_class_of_a_noisy_one_is_plain() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    other = type(model)(3, 2)
    assert torch.equal(other(torch.ones(1, 3)), other(torch.ones(1, 3)))
    assert not wn.has_weight_noise(other)
    assert isinstance(other.weight, nn.Parameter)
    copy.deepcopy(wn.add_weight_noise(other, 0.1))


def test_graph_modules() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(3, 3))
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.layer(x) @ self.matrix
            return output

    traced = torch.fx.symbolic_trace(Root())
    with pytest.raises(wn.UnsupportedParameterError, match=r"root of a torch\.fx\.GraphModule"):
        wn.add_weight_noise(traced, 0.1)
    wn.add_weight_noise(traced, {nn.Linear: 0.1})
    traced.recompile()
    assert not torch.equal(traced(torch.ones(1, 3)), traced(torch.ones(1, 3)))


def test_a_model_that_contains_itself() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].back = model
    wn.add_weight_noise(model, 0.1)
    assert list(wn.noisy_parameters(model)) == ["0.weight"]
    wn.remove_weight_noise(model)
