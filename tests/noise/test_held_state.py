"""A forward in a hold leaves torch's random state where the plain forward leaves it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.cases import LAWS, kinds_of_noise

SIZES = [8, 64]


class Dropped(nn.Module):
    """A layer whose forward takes numbers before and after the noise."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(self.first(x), 0.5)
        output: Tensor = nn.functional.dropout(self.last(x), 0.5)
        return output


MODELS: dict[str, Callable[[int], tuple[nn.Module, Tensor]]] = {
    "linear": lambda n: (Dropped(n), torch.randn(3, n)),
    "table": lambda n: (nn.Embedding(16 * n, n, padding_idx=1), torch.tensor([1, 2, 3])),
    "bag": lambda n: (nn.EmbeddingBag(16 * n, n), torch.tensor([[1, 2, 3]])),
    "recurrent": lambda n: (nn.LSTM(n, n, num_layers=2, dropout=0.5), torch.randn(3, 2, n)),
    "attention": lambda n: (nn.TransformerEncoderLayer(n, 2, n, dropout=0.5), torch.randn(3, 2, n)),
    "weight_norm": lambda n: (
        nn.Sequential(parametrizations.weight_norm(nn.Linear(n, n)), nn.Dropout()),
        torch.randn(2, n),
    ),
    "spectral_norm": lambda n: (nn.Sequential(parametrizations.spectral_norm(nn.Linear(n, n))), torch.randn(2, n)),
    "convolution": lambda n: (nn.Sequential(nn.Conv1d(n, n, 3), nn.Dropout(0.5)), torch.randn(2, n, 5)),
}


def state_after(model: nn.Module, x: Tensor, how: str) -> Tensor:
    torch.manual_seed(7)
    if how == "backward":
        model(x)[0].sum().backward()
    elif how == "checkpoint":
        checkpoint(model, x, use_reentrant=False)[0].sum().backward()
    elif how == "no_grad":
        torch.no_grad()(model)(x)
    return torch.get_rng_state()


def assert_same_state(model: nn.Module, noisy: nn.Module, x: Tensor, seed: int | None) -> None:
    for how in ("backward", "no_grad", "checkpoint"):
        expected = state_after(model, x, how)
        with wn.hold_noise(noisy, seed=seed) as held:
            assert torch.equal(state_after(noisy, x, how), expected), how
            assert torch.equal(state_after(noisy, x, how), expected), how
            held.reset()
            assert torch.equal(state_after(noisy, x, how), expected), how


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_every_kind_of_module(kind: str, memory: Any, seed: int | None, size: int) -> None:
    model, x = MODELS[kind](size)
    noisy = wn.add_weight_noise(copy.deepcopy(model), 0.1, memory=memory)
    assert_same_state(model, noisy, x, seed)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("kind", ["flipout", "local", "activations"])
def test_every_kind_of_noise(kind: str, seed: int | None, size: int) -> None:
    model, x = MODELS["linear"](size)
    assert_same_state(model, kinds_of_noise(0.1)[kind](copy.deepcopy(model)), x, seed)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LAWS)
def test_every_law(name: str, size: int) -> None:
    model, x = MODELS["linear"](size)
    assert_same_state(model, wn.add_weight_noise(copy.deepcopy(model), LAWS[name]), x, None)


ACTIVATIONS: dict[str, Any] = {
    "salt": wn.SaltAndPepper(0.2),
    "current": wn.CurrentNoise(1.0),
    "stochastic": wn.Quantize(4, stochastic=True),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_laws_of_activations(name: str, size: int) -> None:
    model, x = MODELS["linear"](size)
    assert_same_state(
        model, wn.add_activation_noise(copy.deepcopy(model), {nn.Linear: ACTIVATIONS[name]}), x, None
    )
