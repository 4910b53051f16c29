"""Modules that read the weights of others, rewrite themselves, or hold parameters of odd kinds."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn
from tests.helpers import Counting
from tests.reference import held_weights, plain_copy_with


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


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize("masked", [True, False])
def test_the_fast_path_of_a_whole_encoder_uses_the_noisy_weights(masked: bool) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    encoder = wn.add_weight_noise(nn.TransformerEncoder(layer, 2).eval(), 0.1, min_ndim=1)
    plain, x = plain_copy_with(encoder, held_weights(encoder, 0)), torch.randn(2, 3, 4)
    mask = torch.tensor([[False, False, True], [False, False, False]]) if masked else None
    with torch.no_grad(), wn.hold_noise(encoder, seed=0):
        assert torch.equal(encoder(x, src_key_padding_mask=mask), plain(x, src_key_padding_mask=mask))
    with torch.no_grad():
        assert not torch.equal(encoder(x), encoder(x))


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


@pytest.mark.parametrize(
    "gone", [lambda model: setattr(model, "bias", None), lambda model: delattr(model, "bias")]
)
def test_a_noisy_parameter_that_has_gone_stands_in_nobodys_way(gone: Any) -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), {"bias": 0.1})
    gone(model)
    wn.add_weight_noise(model, {"weight": 0.2})
    with wn.hold_noise(model, seed=0):
        assert torch.equal(model.weight, model.weight)
    wn.remove_weight_noise(model)
    assert type(model) is nn.Linear
    assert "parametrizations" not in model._modules


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


def test_tracing_a_root_whose_parameter_is_noisy_does_not_freeze_one_draw() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.matrix

    model = wn.add_weight_noise(Root(), 0.1)
    with pytest.raises(wn.ExportError, match="no_noise"):
        torch.fx.symbolic_trace(model)
    with wn.no_noise(model):
        traced = torch.fx.symbolic_trace(model)
    assert traced.matrix is model._parameters["matrix"]


def test_copies_of_a_graph_module_with_noisy_layers_keep_the_noise() -> None:
    traced = torch.fx.symbolic_trace(wn.add_weight_noise(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), 0.1))
    for other in (copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        assert list(wn.noisy_parameters(other)) == ["0.weight"]
        assert not torch.equal(other(torch.ones(1, 3)), other(torch.ones(1, 3)))


def test_a_forward_that_was_replaced_on_the_instance_draws_once() -> None:
    # As accelerate does with every module of a model that it dispatches.
    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.zeros(3, 3))

        def forward(self) -> Tensor:
            return self.matrix - self.matrix

    model: Any = Difference()
    plain_forward = model.forward
    model.forward = lambda: plain_forward()
    wn.add_weight_noise(model, 0.1)
    assert torch.equal(model(), torch.zeros(3, 3))


def test_a_model_that_contains_itself() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].back = model
    wn.add_weight_noise(model, 0.1)
    assert list(wn.noisy_parameters(model)) == ["0.weight"]
    wn.remove_weight_noise(model)
