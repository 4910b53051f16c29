"""Weights that are no plain dense numbers, and padding rows: right or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.cases import LAWS, LEARNED

SIZES = [8, 64]

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "csr": lambda weight: weight.to_sparse_csr(),
    "csc": lambda weight: weight.to_sparse_csc(),
    "coo": lambda weight: weight.to_sparse(),
    "bsr": lambda weight: weight.to_sparse_bsr((2, 2)),
    "bsc": lambda weight: weight.to_sparse_bsc((2, 2)),
    "mkldnn": lambda weight: weight.to_mkldnn(),
}


@pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC|BSR|BSC):UserWarning")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_are_refused(layout: str, size: int) -> None:
    packed = nn.Parameter(LAYOUTS[layout](torch.randn(size, size)), requires_grad=False)
    model = nn.Sequential(nn.Linear(size, size), nn.Linear(size, size))
    model[0].weight = packed
    with pytest.raises(wn.UnsupportedParameterError, match=r"'0.weight' has layout torch\..*to_dense\(\)"):
        wn.add_weight_noise(model, 0.1)
    assert not wn.has_weight_noise(model)
    wn.add_weight_noise(model, {"0.*": None, "*": 0.1})
    later = wn.add_weight_noise(nn.Linear(size, size), 0.1)
    later.weight = packed
    with pytest.raises(wn.UnsupportedParameterError, match=r"'weight' has layout torch\..* now"):
        later(torch.randn(2, size))


def negated(weight: Tensor) -> Tensor:
    """The same numbers, in memory that holds their negatives."""
    found = torch.imag(torch.complex(torch.zeros_like(weight), -weight).conj())
    assert found.is_neg()
    return found


def of_a_conjugate(weight: Tensor) -> Tensor:
    """The same numbers, at a stride: the real parts of a conjugate."""
    return torch.real(torch.complex(weight, weight).conj())


VIEWS = {
    "negated": negated,
    "of_a_conjugate": of_a_conjugate,
    "transposed": lambda weight: weight.T.contiguous().T,
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [name for name in LAWS if name not in ("custom", "custom_straight")])
@pytest.mark.parametrize("view", VIEWS)
def test_views_have_the_noise_of_their_numbers(view: str, name: str, size: int) -> None:
    weight, x = torch.randn(size, size) / 2, torch.randn(2, size)
    outputs = []
    for values in (weight, VIEWS[view](weight)):
        model = nn.Linear(size, size, bias=False)
        model.weight = nn.Parameter(values)
        wn.add_weight_noise(model, LAWS[name])
        with wn.hold_noise(model, seed=1):
            outputs.append(model(x).detach())
            with torch.no_grad():
                assert torch.equal(model(x), outputs[-1])
    torch.testing.assert_close(*outputs)


# Padding rows.


class Tied(nn.Module):
    """An embedding with a padding row, tied to the head."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.head = nn.Linear(size, size, bias=False)
        self.table = nn.Embedding(size, size, padding_idx=1)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.head(self.table(tokens))
        return output


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("name", LAWS)
def test_a_hold_is_one_weight_for_all_uses(name: str, memory: Any, size: int) -> None:
    model, tokens = Tied(size), torch.tensor([0, 1, 2])
    clean = model.table.weight.detach().clone()
    wn.add_weight_noise(model, LAWS[name], memory=memory)
    with wn.hold_noise(model, seed=1):
        assert torch.equal(model.head.weight, model.table.weight)
        assert torch.equal(model.head.weight[1], clean[1])
        held = model(tokens)
        baked = wn.remove_weight_noise(copy.deepcopy(model), bake=True)
    torch.testing.assert_close(baked(tokens), held)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("estimator", ["flipout", "local"])
def test_estimators_leave_the_row_of_a_tied_head_clean(estimator: Any, size: int) -> None:
    head = nn.Linear(size, size, bias=False)
    model = nn.ModuleDict({"table": nn.Embedding(size, size, padding_idx=1), "head": head})
    head.weight = model["table"].weight
    wn.add_weight_noise(nn.ModuleDict({"head": head}), 0.5, estimator=estimator)
    x = torch.randn(3, size)
    noise: Any = head.parametrizations.weight[0]
    noise.padding_row = 1  # The embedding itself cannot have this estimator, so that a spec refuses the pair.
    with wn.no_noise(head):
        clean = head(x)
    moved = head(x) != clean
    assert not moved[:, 1].any()
    assert moved[:, 0].all()


EXACT = {
    **{name: LAWS[name] for name in LAWS if "exact" in name or name.startswith(("drop", "log", "chain"))},
    "clip_std": wn.Clip(1.0),
    "parametric_exact": wn.ParametricNoise(0.3, gradient="exact"),
    "custom": wn.Custom(lambda weight: weight * (1 + weight.std() * torch.randn_like(weight))),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("name", EXACT)
def test_the_padding_row_gets_no_gradient(name: str, make: Any, size: int) -> None:
    table = make(size, size, padding_idx=1)
    nn.init.normal_(table.weight)
    wn.add_weight_noise(table, EXACT[name])
    table(torch.tensor([[0, 1, 2]])).square().sum().backward()
    assert table.weight.grad[0].any()
    assert not table.weight.grad[1].any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", EXACT)
def test_a_read_of_the_row_itself_has_the_gradient_of_a_clean_one(name: str, size: int) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(size, size, padding_idx=1)

        def forward(self) -> Tensor:
            row: Tensor = self.table.weight[1]
            return row.sum()

    model = wn.add_weight_noise(Reads(), EXACT[name])
    model().backward()
    grad = model.table.weight.grad
    assert grad is not None
    assert torch.equal(grad[1], torch.ones(size))


def test_learned_strengths_of_a_padded_table_have_their_gradient() -> None:
    for name in sorted(LEARNED):
        table = wn.add_weight_noise(nn.Embedding(8, 8, padding_idx=1), LAWS[name])
        table(torch.tensor([0, 1, 2])).square().sum().backward()
        assert all(value.grad is not None and value.grad.any() for value in wn.learned_strengths(table).values())
