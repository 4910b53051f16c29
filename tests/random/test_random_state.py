"""torch's random state is the only one: recomputation, seeds and equal shapes come out right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.cases import CASES, FIXED, LAWS
from tests.helpers import seen


def gradients(model: nn.Module, outputs: tuple[Tensor, ...]) -> list[Tensor]:
    model.zero_grad()
    sum(k * output.square().sum() for k, output in enumerate(outputs, 1)).backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("law", LAWS)
def test_activation_checkpointing(law: str, use_reentrant: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 4))
    wn.add_weight_noise(model, LAWS[law])
    x = torch.randn(3, 4, requires_grad=True)

    def both(call: Any) -> list[Tensor]:
        torch.manual_seed(3)
        first, second = call(x), call(x + 1)  # Two forwards before one backward.
        return gradients(model, (first, second))

    plain = both(model)
    recomputed = both(lambda x: checkpoint(model, x, use_reentrant=use_reentrant))
    for found, expected in zip(recomputed, plain, strict=True):
        assert_close(found, expected)  # The two backward passes are summed in another order.


@pytest.mark.parametrize("case", ["lstm", "attention", "transformer", "reads_twice", "tied"])
def test_activation_checkpointing_of_every_kind_of_module(case: str) -> None:
    model, x = wn.add_weight_noise(CASES[case].model(), 0.1), CASES[case].batch()
    torch.manual_seed(3)
    plain = gradients(model, (model(x),))
    torch.manual_seed(3)
    recomputed = gradients(model, (checkpoint(model, x, use_reentrant=False),))
    for found, expected in zip(recomputed, plain, strict=True):
        assert_close(found, expected)


def test_a_checkpoint_inside_a_module_that_reads_its_weight_there() -> None:
    class Inside(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            output: Tensor = checkpoint(super().forward, input, use_reentrant=False)
            return output

    model = wn.add_weight_noise(Inside(4, 4), 0.5)
    x = torch.randn(3, 4, requires_grad=True)
    torch.manual_seed(3)
    model(x).square().sum().backward()
    found = x.grad.clone()
    x.grad = None
    torch.manual_seed(3)
    nn.functional.linear(x, seen(model), model.bias).square().sum().backward()
    assert torch.equal(found, x.grad)


class PartlyCheckpointed(nn.Module):
    """Reads its weight, and then once more in a part that is recomputed."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 4))
        self.recompute = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(x @ self.matrix)
        output: Tensor = (
            checkpoint(self.rest, hidden, use_reentrant=False) if self.recompute else self.rest(hidden)
        )
        return output

    def rest(self, hidden: Tensor) -> Tensor:
        return torch.tanh(hidden @ self.matrix.T)


def gradients_with_and_without_recomputation(model: nn.Module, x: Tensor) -> list[list[Tensor]]:
    found = []
    for recompute in (False, True):
        model.recompute = recompute
        torch.manual_seed(3)
        found.append(gradients(model, (model(x),)))
    return found


def test_a_weight_that_is_read_before_a_checkpoint_and_inside_it() -> None:
    model = wn.add_weight_noise(PartlyCheckpointed(), 0.3)
    plain, recomputed = gradients_with_and_without_recomputation(model, torch.randn(3, 4))
    assert_close(recomputed[0], plain[0])


def test_a_weight_that_is_read_before_a_checkpoint_and_inside_it_while_held() -> None:
    model = wn.add_weight_noise(PartlyCheckpointed(), 0.3)
    with wn.hold_noise(model):
        plain, recomputed = gradients_with_and_without_recomputation(model, torch.randn(3, 4))
    assert_close(recomputed[0], plain[0])


@pytest.mark.parametrize("normed", [True, False])
def test_a_hold_entered_before_a_checkpoint_leaves_dropout_inside_it_alone(normed: bool) -> None:
    # A draw made inside the region at the first pass and not at the second would shift the dropout mask.
    first = nn.Linear(20, 20)
    model = nn.Sequential(parametrizations.weight_norm(first) if normed else first, nn.Dropout(0.5))
    wn.add_weight_noise(model, 0.1)
    x, found = torch.randn(4, 20), []
    for call in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        torch.manual_seed(3)
        with wn.hold_noise(model):
            found.append(gradients(model, (call(x),)))
    for recomputed, plain in zip(*found, strict=True):
        assert_close(recomputed, plain)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("seed", [None, 0])
def test_a_hold_entered_before_a_compiled_forward_leaves_its_graph_whole(seed: int | None) -> None:
    model = wn.add_weight_noise(nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2))), 0.1)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with wn.hold_noise(model, seed=seed):
        assert_close(compiled(torch.ones(1, 3)), model(torch.ones(1, 3)))


def test_a_held_draw_survives_recomputation_and_what_is_drawn_meanwhile() -> None:
    model, x = wn.add_weight_noise(CASES["mlp"].model(), 0.1), CASES["mlp"].batch()
    with wn.hold_noise(model, seed=0):
        plain = gradients(model, (model(x),))
        output = checkpoint(model, x, use_reentrant=False, preserve_rng_state=False)
        torch.rand(7)
        recomputed = gradients(model, (output,))
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


@pytest.mark.parametrize("law", [name for name in LAWS if name not in FIXED])
def test_equal_shapes_get_different_draws_seeded_or_not(law: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].load_state_dict(model[0].state_dict())
    wn.add_weight_noise(model, LAWS[law])
    assert not torch.equal(seen(model[0]), seen(model[1]))
    with wn.hold_noise(model, seed=0):
        assert not torch.equal(model[0].weight, model[1].weight)


@pytest.mark.parametrize("law", LAWS)
def test_a_seeded_hold_leaves_the_random_state_after_an_exception_too(law: str) -> None:
    model = wn.add_weight_noise(nn.Linear(4, 4), LAWS[law])
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="shapes"), wn.hold_noise(model, seed=0):
        model(torch.ones(1, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_fork_rng_and_manual_seed_govern_the_noise() -> None:
    model = wn.add_weight_noise(nn.Linear(4, 4), 0.1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = model.weight
    torch.manual_seed(1)
    assert torch.equal(model.weight, first)


def test_autocast_and_inference_mode() -> None:
    model = wn.add_weight_noise(nn.Linear(4, 4), 0.1)
    with torch.inference_mode():
        assert not torch.equal(model(torch.ones(1, 4)), model(torch.ones(1, 4)))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.ones(1, 4))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert model._parameters["weight"].grad.dtype == torch.float32
