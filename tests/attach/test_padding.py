"""Embeddings: the padding row stays clean, and gradients may be sparse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap
from torch.testing import assert_close

import weightnoise as wn
from tests.helpers import seen


@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
def test_the_padding_row_stays_clean(make: Any) -> None:
    model = wn.add_weight_noise(make(5, 3, padding_idx=1), 0.1)
    clean = model._parameters["weight"]
    moved = (seen(model) != clean).all(dim=1)
    assert moved.tolist() == [True, False, True, True, True]
    model(torch.tensor([[0, 1, 2]])).sum().backward()
    assert torch.equal(clean.grad[1], torch.zeros(3))


def test_the_padding_row_stays_clean_under_a_law_whose_backward_needs_its_result() -> None:
    model = wn.add_weight_noise(nn.Embedding(5, 3, padding_idx=1), wn.Custom(torch.tanh))
    clean = model._parameters["weight"]
    model(torch.tensor([0, 1, 2])).sum().backward()
    expected = (1 - clean.detach().tanh().square()) * torch.tensor([1.0, 0, 1, 0, 0])[:, None]
    assert_close(clean.grad, expected)
    with torch.no_grad():
        assert torch.equal(model.weight[1], clean[1])


def test_a_law_that_returns_the_weight_itself_does_not_edit_it() -> None:
    model = wn.add_weight_noise(nn.Embedding(5, 3, padding_idx=1), wn.Custom(lambda weight: weight))
    version = model._parameters["weight"]._version
    model(torch.tensor([0, 1, 2]))
    assert model._parameters["weight"]._version == version


@pytest.mark.parametrize(
    "make", [nn.Embedding, lambda *args, **options: nn.EmbeddingBag(*args, mode="sum", **options)]
)
@pytest.mark.parametrize(
    "law",
    [
        wn.Gaussian(0.1),
        wn.Uniform(0.1, relative_to="absmax"),
        wn.Gaussian(0.1, relative_to="value", gradient="exact"),
    ],
)
def test_sparse_gradients_pass_and_are_the_dense_ones(law: wn.Noise, make: Any) -> None:
    sparse = wn.add_weight_noise(make(5, 3, sparse=True, padding_idx=1), law)
    dense = wn.add_weight_noise(make(5, 3, padding_idx=1), law)
    dense.load_state_dict(sparse.state_dict())
    for model in (sparse, dense):
        with wn.hold_noise(model, seed=0):
            model(torch.tensor([[0, 1, 2, 2]])).square().sum().backward()
    found = sparse._parameters["weight"].grad
    assert found.is_sparse
    assert_close(found.to_dense(), dense._parameters["weight"].grad)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func.jvp uses it.
def test_padded_embeddings_under_the_transforms_of_torch_func() -> None:
    model, weights = wn.add_weight_noise(nn.Embedding(5, 3, padding_idx=1), 0.1), torch.randn(4, 5, 3)

    def look_up(weight: Tensor) -> Tensor:
        output: Tensor = functional_call(model, {"weight": weight}, (torch.tensor([0, 1]),))
        return output

    with wn.hold_noise(model, seed=0):
        batched = vmap(look_up)(weights)
        assert torch.equal(batched, torch.stack([look_up(weight) for weight in weights]))
        assert torch.equal(batched[:, 1], weights[:, 1])
        _, tangent = jvp(lambda weight: look_up(weight)[0], (weights[0],), (torch.ones(5, 3),))
        assert torch.equal(tangent, torch.ones(3))
