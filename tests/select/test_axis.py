"""The dimension of the examples, with which noise differs: found, given, shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn

SIZES = [8, 64]


class Recurrent(nn.Module):
    """A recurrent layer and a head on all its steps, or on the last."""

    def __init__(self, size: int, batch_first: bool, last: bool) -> None:
        super().__init__()
        self.layer = nn.LSTM(size, size, batch_first=batch_first)
        self.head = nn.Sequential(nn.Linear(size, size), nn.Tanh())
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        steps = self.layer(x)[0]
        if self.last:
            steps = steps[:, -1] if self.layer.batch_first else steps[-1]
        output: Tensor = self.head(steps)
        return output


class Plain(nn.Module):
    """Layers that say nothing of their layout, one of which is deeper."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(size, size))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(x)
        return output


def encoder(size: int, batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(size, 2, size, dropout=0.0, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


# How a model is made, the options, and the dimension of the examples in what it takes in.
MODELS: dict[str, tuple[Callable[[int], nn.Module], dict[str, Any], int]] = {
    "transformer": (lambda n: encoder(n, False), {}, 1),
    "transformer_batch_first": (lambda n: encoder(n, True), {}, 0),
    "lstm": (lambda n: Recurrent(n, False, last=False), {}, 1),
    "lstm_batch_first": (lambda n: Recurrent(n, True, last=False), {}, 0),
    "lstm_last": (lambda n: Recurrent(n, False, last=True), {}, 1),
    "plain": (Plain, {}, 0),
    "given": (Plain, {"batch_dim": 1}, 1),
    "given_against": (lambda n: encoder(n, False), {"batch_dim": 1}, 1),
}


def spec_of(model: nn.Module) -> dict[Any, Any]:
    heads = [name for name, _ in model.named_parameters() if "head.0.weight" in name]
    return {"*head.0.weight": 0.3} if heads else {"*linear?.weight": 0.3}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_equal_examples_have_noise_of_their_own(kind: str, held: bool, size: int) -> None:
    make, options, dim = MODELS[kind]
    model = make(size)
    spec = spec_of(model)
    plan = wn.plan_weight_noise(model, spec, estimator="flipout", **options)
    assert {row.batch_dim for row in plan.rows} == {dim}
    assert str(plan).splitlines()[0].endswith("batch dim")
    wn.add_weight_noise(model, spec, estimator="flipout", **options)
    example = torch.randn(size)
    steps, batch = 3, 4
    shape = (steps, batch, size) if dim else (batch, steps, size)
    with wn.hold_noise(model, seed=1) if held else wn.force_noise(model):
        noisy = model(example.expand(shape))
    with wn.no_noise(model):
        moved = noisy - model(example.expand(shape))
    examples = moved.movedim(0 if kind == "lstm_last" else dim, 0)
    assert all(not torch.allclose(examples[0], examples[other]) for other in range(1, batch))
    if not kind.startswith("lstm"):  # There the steps differ by themselves.
        torch.testing.assert_close(examples[:, 0], examples[:, 1])


@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_varies_less_in_any_layout(size: int) -> None:
    """In proportion to what one draw for all examples would do: the fourth part or less with 16 equal examples."""
    example = torch.randn(5, 1, size)

    def spread(batch_first: bool, **options: Any) -> float:
        torch.manual_seed(0)
        model = wn.add_weight_noise(encoder(size, batch_first), {"*linear?.weight": 0.3}, **options)
        x = example.expand(5, 16, size)
        found = []
        for _ in range(40):
            model.zero_grad()
            model(x.transpose(0, 1) if batch_first else x).square().mean(dim=(0, 1))[0].backward()
            found.append(model.layers[0].linear2.bias.grad.clone())
        return torch.stack(found).var(dim=0).sum().item()

    for batch_first in (False, True):
        assert spread(batch_first, estimator="flipout") < spread(batch_first) / 4


@pytest.mark.parametrize("size", SIZES)
def test_a_smaller_batch_sees_the_first_of_the_examples_in_a_hold(size: int) -> None:
    model = wn.add_weight_noise(encoder(size, False), {"*linear?.weight": 0.3}, estimator="flipout")
    x = torch.randn(3, 5, size)
    with wn.hold_noise(model, seed=1):
        torch.testing.assert_close(model(x)[:, :2], model(x[:, :2]))


def test_the_nearest_module_decides_and_those_that_disagree_say_nothing() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.LSTM(8, 8, batch_first=True)
            self.second = nn.GRU(8, 8)
            self.head = nn.Linear(8, 8)
            self.inner = encoder(8, False)

    plan = wn.plan_weight_noise(Mixed(), {"head.weight": 0.1, "*linear?.weight": 0.1}, estimator="flipout")
    assert [row.batch_dim for row in plan.rows] == [0, 1, 1]
    shared = wn.plan_weight_noise(Mixed(), {"head.weight": 0.1})
    assert shared.rows[0].batch_dim is None
    assert "batch dim" not in str(shared)
    noisy = wn.add_weight_noise(Mixed(), {"*linear?.weight": 0.1}, estimator="flipout")
    assert "batch_dim=1" in str(noisy)


@pytest.mark.parametrize("bad", ["1", True, -1, 1.0])
def test_what_a_dimension_cannot_be(bad: Any) -> None:
    with pytest.raises(wn.OptionError, match="batch_dim must be a whole number"):
        wn.add_weight_noise(nn.Linear(2, 2), 0.1, estimator="flipout", batch_dim=bad)
