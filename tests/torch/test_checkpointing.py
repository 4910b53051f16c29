"""Activation checkpointing in all its forms: the recomputation sees the draw of the forward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

import weightnoise as wn
from tests.cases import CASES, LAWS, kinds_of_noise
from tests.helpers import Counting

Run = Callable[..., Any]

# torch 2.15 says so of any saved-tensor hooks inside such a region, which memory="recompute" has.
pytestmark = pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context:FutureWarning")


def save_products(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep the results of matrix products, recompute the rest: so the noise is drawn again, the products not."""
    products = (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
    return CheckpointPolicy.MUST_SAVE if op in products else CheckpointPolicy.PREFER_RECOMPUTE


def save_noise(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep all that is random, recompute the rest. To keep a part of it would shift the numbers of the others."""
    is_random = torch.Tag.nondeterministic_seeded in op.tags
    return CheckpointPolicy.MUST_SAVE if is_random else CheckpointPolicy.PREFER_RECOMPUTE


def selective(policy: Any) -> Run:
    contexts = partial(create_selective_checkpoint_contexts, policy)
    return partial(checkpoint, use_reentrant=False, context_fn=contexts)


def to_the_end(call: Run, *arguments: Any) -> Any:
    """Recompute all of the region, also what nothing asks for any more."""
    with set_checkpoint_early_stop(False):
        return checkpoint(call, *arguments, use_reentrant=False)


WAYS: dict[str, Run] = {
    "reentrant": partial(checkpoint, use_reentrant=True),
    "non-reentrant": partial(checkpoint, use_reentrant=False),
    "all of it, without an early stop": to_the_end,
    "products saved": selective(save_products),
    "noise saved": selective(save_noise),
}
ways = pytest.mark.parametrize("way", WAYS)

KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    **kinds_of_noise(0.3),
    "learned": lambda model: wn.add_weight_noise(model, [wn.DropConnect(0.3), wn.LearnedGaussian(0.3)]),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def block(way: str = "") -> nn.Sequential:
    # A policy that saves what is random breaks torch's own dropout, which writes into its random numbers.
    dropout = nn.Dropout(0.0 if way == "noise saved" else 0.2)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), dropout, nn.Linear(4, 4), nn.Tanh())


def gradients(loss: Callable[[], Tensor], *modules: nn.Module) -> list[Tensor]:
    """The gradients of a loss whose random numbers start from one seed."""
    for module in modules:
        module.zero_grad()
    torch.manual_seed(3)
    loss().backward()
    return [p.grad.clone() for module in modules for p in module.parameters() if p.grad is not None]


def assert_same_gradients(
    plain: Callable[[], Tensor], recomputed: Callable[[], Tensor], *modules: nn.Module
) -> None:
    expected = gradients(plain, *modules)
    assert len(expected) > 0
    for found, gradient in zip(gradients(recomputed, *modules), expected, strict=True):
        assert_close(found, gradient)


@kinds
@ways
def test_blocks_of_a_model_with_several_forwards_before_one_backward(way: str, kind: str) -> None:
    model = KINDS[kind](nn.ModuleList([block(way) for _ in range(3)]))
    x = torch.randn(3, 4, requires_grad=True)

    def loss(call: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        outputs = []
        for start in (x, x + 1):
            hidden = start
            for part in model.children():
                hidden = call(part, hidden)
            outputs.append(hidden)
        return outputs[0].square().sum() + 2 * outputs[1].square().sum()

    assert_same_gradients(
        lambda: loss(lambda part, hidden: part(hidden)), lambda: loss(lambda *args: WAYS[way](*args)), model
    )


def assert_gradient_at_the_drawn_weight(
    forward: Run, backward_in: Callable[[], Any] = nullcontext, law: wn.Noise | None = None
) -> None:
    """For tanh(x @ weight.T): the output at the unit matrix tells the weight that the forward drew."""
    layer = nn.Linear(64, 64, bias=False)
    nn.init.uniform_(layer.weight, -0.1, 0.1)
    wn.add_weight_noise(layer, law or wn.Uniform(0.3))
    x = torch.eye(64, requires_grad=True)
    output = forward(lambda x: torch.tanh(layer(x)), x)
    with backward_in():
        output.sum().backward()
    found = output.detach()
    assert x.grad is not None
    assert_close(x.grad, (1 - found**2) @ torch.atanh(found).T, rtol=1e-3, atol=1e-3)


LARGE = [
    wn.Gaussian(0.2),
    wn.Gaussian(0.2, relative_to="absmax"),
    wn.Uniform(0.3),
    wn.LogNormal(0.3, gradient="straight-through"),
    wn.QuantizationNoise(3),
    wn.Quantize(3, stochastic=True),
    wn.DropConnect(0.3, gradient="straight-through"),
    wn.BitFlip(0.05, bits=4),
]


@pytest.mark.parametrize("law", LARGE, ids=str)
@ways
def test_large_weights_whose_noise_comes_from_another_generator(way: str, law: wn.Noise) -> None:
    assert_gradient_at_the_drawn_weight(WAYS[way], law=law)


class Inert(TorchDispatchMode):
    """Sees every operation, as a counter of operations does, and changes none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_dispatch_mode_around_forward_and_backward(use_reentrant: bool) -> None:
    with Inert():
        assert_gradient_at_the_drawn_weight(partial(checkpoint, use_reentrant=use_reentrant))


@pytest.mark.parametrize("law", LARGE[:3], ids=str)
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_dispatch_mode_around_the_forward_or_the_backward_alone(
    use_reentrant: bool, where: str, law: wn.Noise
) -> None:
    def forward(call: Run, x: Tensor) -> Any:
        with Inert() if where == "forward" else nullcontext():
            return checkpoint(call, x, use_reentrant=use_reentrant)

    assert_gradient_at_the_drawn_weight(forward, Inert if where == "backward" else nullcontext, law)


def under_a_mode(model: nn.Module, x: Tensor, call: Run, where: str) -> list[Tensor]:
    """The loss and all gradients, with a dispatch mode around the forward, the backward, both or neither."""
    model.zero_grad()
    torch.manual_seed(3)
    with Inert() if where in ("forward", "both") else nullcontext():
        loss = call(model, x).square().sum()
    with Inert() if where in ("backward", "both") else nullcontext():
        loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_same_under_modes(model: nn.Module, x: Tensor) -> None:
    expected = under_a_mode(model, x, lambda part, x: part(x), "")
    calls: list[Run] = [partial(checkpoint, use_reentrant=one) for one in (True, False)]
    for call in (lambda part, x: part(x), *calls):
        for where in ("forward", "backward", "both"):
            assert_close(under_a_mode(model, x, call, where), expected)


@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("size", [8, 64, 256])
@pytest.mark.parametrize("law", LAWS)
def test_a_dispatch_mode_and_every_law(law: str, size: int, memory: Any) -> None:
    layers = [nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 8), nn.Tanh()]
    model = wn.add_weight_noise(nn.Sequential(*layers), LAWS[law], memory=memory)
    assert_same_under_modes(model, torch.randn(3, size, requires_grad=True))


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("law", [*LAWS, "salt"])
def test_a_dispatch_mode_and_every_law_on_activations(law: str, size: int) -> None:
    layers = [nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 8), nn.Tanh()]
    noise: Any = wn.SaltAndPepper(0.2) if law == "salt" else LAWS[law]
    try:
        model = wn.add_activation_noise(nn.Sequential(*layers), noise)
    except (wn.WeightNoiseError, ValueError):
        pytest.skip("not for activations")
    assert_same_under_modes(model, torch.randn(64, size, requires_grad=True))


@pytest.mark.parametrize("kind", ["flipout", "local", "lookup", "lookup held", "bag"])
def test_a_dispatch_mode_and_other_kinds_of_reads(kind: str) -> None:
    if kind in ("flipout", "local"):
        layers = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8))
        assert_same_under_modes(
            wn.add_weight_noise(layers, 0.2, estimator=kind),  # type: ignore[arg-type]
            torch.randn(3, 64, requires_grad=True),
        )
        return

    class LookUp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = (nn.EmbeddingBag if kind == "bag" else nn.Embedding)(500, 8)
            self.tokens = torch.tensor([[3, 7, 7], [499, 0, 3]])

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.table(self.tokens)
            return torch.tanh(found * x)

    model, x = wn.add_weight_noise(LookUp(), 0.3), torch.randn(8, requires_grad=True)
    with wn.hold_noise(model, seed=0) if kind == "lookup held" else nullcontext():
        assert_same_under_modes(model, x)


def test_the_way_that_saves_products_draws_again_and_the_one_that_saves_noise_does_not() -> None:
    # Else the selective rows of the table above would say nothing.
    drawn = {}
    for way in ("plain", "products saved", "noise saved"):
        model = wn.add_weight_noise(block("noise saved"), wn.Gaussian(0.3))
        call = (lambda part, x: part(x)) if way == "plain" else WAYS[way]
        output = call(model, torch.randn(3, 4, requires_grad=True))
        with torch.profiler.profile() as profile:
            output.sum().backward()
        drawn[way] = sum(event.count for event in profile.key_averages() if event.key == "aten::normal_")
    assert drawn["plain"] == drawn["noise saved"] == 0
    assert drawn["products saved"] > 0


@kinds
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_sequential(use_reentrant: bool, kind: str) -> None:
    model = KINDS[kind](nn.Sequential(*block(), *block()))
    x = torch.randn(3, 4, requires_grad=True)
    assert_same_gradients(
        lambda: model(x).square().sum(),
        lambda: checkpoint_sequential(model, 3, x, use_reentrant=use_reentrant).square().sum(),
        model,
    )


@pytest.mark.parametrize("way", ["non-reentrant", "products saved"])
def test_a_checkpoint_inside_a_checkpoint(way: str) -> None:
    model = wn.add_weight_noise(nn.ModuleList([block(), block()]), 0.3)
    x = torch.randn(3, 4, requires_grad=True)

    def both(x: Tensor) -> Tensor:
        output: Tensor = model[1](WAYS["non-reentrant"](model[0], x))
        return output

    assert_same_gradients(
        lambda: model[1](model[0](x)).square().sum(), lambda: WAYS[way](both, x).square().sum(), model
    )


class Halves(nn.Module):
    """An embedding tied to the head, each of them in a checkpoint of its own, or not."""

    def __init__(self, recomputed: tuple[str, ...], run: Run) -> None:
        super().__init__()
        inner = CASES["tied"].model()
        self.embed: Any = inner.embed
        self.body: Any = inner.body
        self.head: Any = inner.head
        self.recomputed, self.run = recomputed, run

    def forward(self, tokens: Tensor) -> Tensor:
        # Reentrant checkpointing wants an input that needs a gradient.
        anchor = torch.zeros((), requires_grad=True)
        hidden = self._call("embed", lambda anchor: self.embed(tokens) + anchor, anchor)
        hidden = torch.tanh(self.body(hidden))
        return self._call("head", self.head, hidden)

    def _call(self, name: str, part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        output: Tensor = self.run(part, x) if name in self.recomputed else part(x)
        return output


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("recomputed", [("embed",), ("head",), ("embed", "head")], ids="+".join)
@ways
def test_tied_weights_across_the_border_of_a_checkpoint(way: str, recomputed: tuple[str, ...], held: bool) -> None:
    model = wn.add_weight_noise(Halves(recomputed, WAYS[way]), 0.3)
    tokens = CASES["tied"].batch()

    def loss(recompute: bool) -> list[Tensor]:
        model.recomputed = recomputed if recompute else ()
        if not held:
            return gradients(lambda: model(tokens).square().sum(), model)
        with wn.hold_noise(model, seed=0):
            return gradients(lambda: model(tokens).square().sum(), model)

    for found, expected in zip(loss(True), loss(False), strict=True):
        assert_close(found, expected)


@ways
def test_under_autocast(way: str) -> None:
    model = wn.add_weight_noise(block(way), 0.3)
    x = torch.randn(3, 4, requires_grad=True)

    def loss(call: Run) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            output: Tensor = call(model, x)
        assert output.dtype == torch.bfloat16
        return output.float().square().sum()

    assert_same_gradients(lambda: loss(lambda part, x: part(x)), lambda: loss(WAYS[way]), model)


@ways
def test_a_context_that_stays_open_through_the_backward(way: str) -> None:
    model = wn.add_weight_noise(block(way), 0.3)
    x = torch.randn(3, 4, requires_grad=True)
    for context in (wn.no_noise(model), wn.scale_noise(model, 0.5), wn.hold_noise(model, seed=0)):
        with context:
            assert_same_gradients(
                lambda: model(x).square().sum(), lambda: WAYS[way](model, x).square().sum(), model
            )


@pytest.mark.parametrize("context", [wn.no_noise, partial(wn.hold_noise, seed=0)])
def test_a_context_inside_the_checkpointed_function_is_opened_again(context: Any) -> None:
    model = wn.add_weight_noise(block(), 0.3)
    x = torch.randn(3, 4, requires_grad=True)

    def inside(x: Tensor) -> Tensor:
        with context(model):
            output: Tensor = model(x)
            return output

    assert_same_gradients(
        lambda: inside(x).square().sum(), lambda: WAYS["non-reentrant"](inside, x).square().sum(), model
    )


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_recomputation_leaves_the_random_state_of_the_backward(use_reentrant: bool) -> None:
    model = wn.add_weight_noise(block(), 0.3)
    states = []
    for recompute in (False, True):
        torch.manual_seed(0)
        x = torch.ones(3, 4, requires_grad=True)
        loss = (checkpoint(model, x, use_reentrant=use_reentrant) if recompute else model(x)).sum()
        loss.backward()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_one_draw_for_the_forward_and_one_for_the_recomputation() -> None:
    model, law = nn.Linear(4, 4), Counting()
    wn.add_weight_noise(model, law)
    output = checkpoint(lambda x: torch.tanh(model(x)), torch.ones(1, 4, requires_grad=True), use_reentrant=False)
    assert len(law.draws) == 1
    output.sum().backward()
    assert len(law.draws) == 2
