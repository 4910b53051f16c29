"""torch.compile: one graph, fresh noise per call, no recompilation, right gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import LAWS, NO_CONTEXTS, STILL, needs_torch

# torch's own, while it compiles: with noise and without.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
]

# Layers have something in common, or this law is the example of them all.
TWO_LAYERS = {"gaussian", "correlated_die", "programming_pairs_exact", "chain_of_hardware", "chain_learned"}
TRACEABLE = [name for name in LAWS if not name.startswith("custom")]


def make(law: wn.Noise | list[wn.Noise] | float) -> nn.Sequential:
    return wn.add_weight_noise(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), law)


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("law", [pytest.param(TRACEABLE[0], marks=pytest.mark.quick), *TRACEABLE[1:]])
def test_one_graph_with_fresh_noise_and_the_eager_gradient(law: str) -> None:
    layers = [nn.Linear(4, 4), nn.Tanh()] * (2 if law in TWO_LAYERS else 1)
    model, x = wn.add_weight_noise(nn.Sequential(*map(copy.deepcopy, layers)), LAWS[law]), torch.randn(3, 4)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), compiled(x)) == (law in STILL)
    with wn.hold_noise(model, seed=0):
        found = compiled(x)
        found.sum().backward()
        grads = [p.grad for p in model.parameters()]
        model.zero_grad()
        expected = model(x)
        expected.sum().backward()
    assert_close(found, expected)
    for grad, parameter in zip(grads, model.parameters(), strict=True):
        assert_close(grad, parameter.grad)


def test_inductor() -> None:
    model, x = make(0.1), torch.randn(3, 4)
    compiled = torch.compile(model, fullgraph=True)
    assert not torch.equal(compiled(x), compiled(x))
    with wn.hold_noise(model, seed=0):
        assert_close(compiled(x), model(x))


def test_equal_shapes_get_two_draws_in_one_graph() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    wn.add_weight_noise(model, 0.1)

    def weights() -> tuple[Any, Any]:
        first, second = (layer.weight * 1 for layer in model.values())
        return first, second

    both = torch.compile(weights, fullgraph=True)()
    assert not torch.equal(both[0], both[1])  # Equal shapes, two draws.


@needs_torch("2.9", "its Dynamo makes constants of the factors, each of which is a compile")
def test_nothing_recompiles_from_step_to_step_or_with_the_factor() -> None:
    model, x = make(0.1), torch.randn(3, 4)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(4):
        compiled(x)
    assert graphs() == 1
    for factor in (0.9, 0.8):
        with wn.scale_noise(model, factor):
            compiled(x)
    known = graphs()
    for factor in (0.7, 0.6, 0.5, 0.4, 0.3):
        with wn.scale_noise(model, factor):
            compiled(x)
    assert graphs() == known <= 3


def test_toggling_costs_one_compile_each_way() -> None:
    model, x = make(0.1), torch.randn(3, 4)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        compiled(x)
        with wn.no_noise(model):
            assert torch.equal(compiled(x), compiled(x))
    assert graphs() == 2


@needs_torch("2.9", NO_CONTEXTS)
def test_contexts_inside_the_compiled_function() -> None:
    model, x = make(0.1), torch.randn(3, 4)

    def step(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with wn.no_noise(model):
            clean = model(x)
        with wn.hold_noise(model):
            pair = model(x) - model(x)
        return clean, pair, model(x)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    clean, pair, noisy = compiled(x)
    with wn.no_noise(model):
        assert_close(clean, model(x))
    assert torch.equal(pair, torch.zeros(3, 4))
    assert not torch.equal(noisy, clean)


def test_equal_blocks_compiled_one_by_one_share_their_code() -> None:
    blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(12)])
    wn.add_weight_noise(blocks, 0.1)
    x = torch.randn(3, 4)
    for block in blocks:
        x = torch.compile(block, backend="eager", fullgraph=True)(x)
    assert graphs() <= 2


def test_noise_added_and_removed_after_compiling() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    clean = compiled(x)
    wn.add_weight_noise(compiled, 0.1)
    assert not torch.equal(compiled(x), compiled(x))
    wn.remove_weight_noise(compiled)
    assert torch.equal(compiled(x), clean)


def test_a_recurrent_layer_breaks_the_graph_as_it_does_without_noise_and_is_right() -> None:
    model, x = wn.add_weight_noise(nn.LSTM(3, 4), 0.1), torch.randn(5, 2, 3)
    compiled = torch.compile(model, backend="eager")
    with wn.hold_noise(model, seed=0):
        assert_close(compiled(x)[0], model(x)[0])
    assert not torch.equal(compiled(x)[0], compiled(x)[0])
    assert model._flat_weights[0] is model._parameters["weight_ih_l0"]


def test_a_custom_law_breaks_the_graph_and_is_right() -> None:
    model, x = make(LAWS["custom"]), torch.randn(3, 4)
    compiled = torch.compile(model, backend="aot_eager")
    with wn.hold_noise(model, seed=0):
        assert_close(compiled(x), model(x))
    assert not torch.equal(compiled(x), compiled(x))


class Listed(nn.Module):
    """Multiplies by a matrix of a list, and by its inverse: the input comes out where both reads agree."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([nn.Parameter(2 * torch.eye(size))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.matrices[0]) @ torch.linalg.inv(self.matrices[0])


class Holding(nn.Module):
    """The same with a matrix in a module that has no forward."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.holder = nn.Module()
        self.holder.matrix = nn.Parameter(2 * torch.eye(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.holder.matrix) @ torch.linalg.inv(self.holder.matrix)


class OnceEach(nn.Module):
    """Calls a module twice that reads a matrix of a list once."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([nn.Parameter(torch.zeros(size, size))])
        self.call = _Reads(self.matrices)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.call(x), self.call(x)


class _Reads(nn.Module):
    def __init__(self, matrices: nn.ParameterList) -> None:
        super().__init__()
        self.matrices = matrices

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrices[0]


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("kind", [Listed, Holding])
def test_reads_of_what_has_no_forward_have_one_draw(kind: Callable[[int], nn.Module], size: int) -> None:
    blocks = nn.Sequential(*(kind(size) for _ in range(2)))
    model, x = wn.add_weight_noise(blocks, 0.05), torch.randn(3, size)
    model.compile(backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(model(x), x, rtol=1e-4, atol=1e-4)  # Of the inverses.
    model(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with wn.no_noise(model):
        assert torch.equal(model(x), x)


def test_a_weight_that_is_read_once_in_each_forward_is_compiled_and_drawn_for_each() -> None:
    model = wn.add_weight_noise(OnceEach(8), 0.05)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    one, other = compiled(torch.eye(8))
    assert not torch.equal(one, other)
    assert not torch.equal(one, compiled(torch.eye(8))[0])
