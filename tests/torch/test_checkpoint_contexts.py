"""A recomputation sees the contexts and the draws of its forward, whatever has opened, closed or gone on since."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed._composable.checkpoint_activation import checkpoint as checkpoint_module
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import weightnoise as wn
from tests.cases import LAWS, kinds_of_noise, torch_before
from tests.helpers import in_forward, seen

Context = Callable[[nn.Module], AbstractContextManager[Any]]

pytestmark = pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context:FutureWarning")

SIZES = (8, 64)  # torch's generator draws for the small weight, the package's own for the large one.


def to_the_end(call: Any, *arguments: Any) -> Any:
    with set_checkpoint_early_stop(False):
        return checkpoint(call, *arguments, use_reentrant=False)


def twice(call: Any, x: Tensor, inner: bool = False) -> Any:
    """A region in a region."""
    return checkpoint(lambda x: checkpoint(call, x, use_reentrant=inner), x, use_reentrant=False)


WAYS: dict[str, Callable[..., Any]] = {
    "reentrant": partial(checkpoint, use_reentrant=True),
    "non-reentrant": partial(checkpoint, use_reentrant=False),
    "without an early stop": to_the_end,
    "in another": twice,
    "in another, within reentrant": lambda call, x: checkpoint(
        lambda x: checkpoint(call, x, use_reentrant=False), x, use_reentrant=True
    ),
    "numbers not repeated": partial(checkpoint, use_reentrant=False, preserve_rng_state=False),
    "numbers not repeated, reentrant": partial(checkpoint, use_reentrant=True, preserve_rng_state=False),
}
ways = pytest.mark.parametrize("way", WAYS)

KINDS: dict[str, Callable[..., nn.Module]] = {
    **kinds_of_noise(0.3),
    "learned": lambda model: wn.add_weight_noise(model, [wn.DropConnect(0.3), wn.LearnedGaussian(0.3)]),
    "masks": lambda model: wn.add_weight_noise(model, wn.DropConnect(0.3)),
    "both": lambda model: wn.add_activation_noise(wn.add_weight_noise(model, 0.3), wn.Uniform(0.1), at="input"),
}


def block(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, size), nn.Tanh())


def gradients(
    model: nn.Module,
    call: Callable[..., Tensor],
    x: Tensor,
    forward: Context,
    between: Callable[[nn.Module], object],
    backward: Context,
) -> list[Tensor]:
    """The gradients of a forward in one context and a backward in another, with something in between."""
    model.train().zero_grad()
    with suppress(wn.NotNoisyError):
        wn.NoiseScheduler(model, lambda step: 1.0)
    x = x.clone().requires_grad_()
    torch.manual_seed(3)
    with forward(model):
        loss = call(model, x).square().sum()
    between(model)
    with backward(model):
        loss.backward()
    assert x.grad is not None
    return [x.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def nothing(model: nn.Module) -> AbstractContextManager[Any]:
    return nullcontext()


@contextmanager
def several(model: nn.Module, *contexts: Context) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context(model))
        yield


half: Context = partial(wn.scale_noise, factor=0.5)
held: Context = partial(wn.hold_noise, seed=0)
mirrored: Context = partial(wn.hold_noise, seed=0, sign=-1)


def a_schedule(model: nn.Module) -> object:
    return wn.NoiseScheduler(model, lambda step: 0.7)


# What is around the forward, what comes between, and what is around the backward.
EVENTS: dict[str, tuple[Context, Callable[[nn.Module], object], Context]] = {
    "off, then on": (wn.no_noise, nothing, nothing),
    "on, then off": (nothing, nothing, wn.no_noise),
    "half, then whole": (half, nothing, nothing),
    "whole, then half": (nothing, nothing, half),
    "held, then free": (held, nothing, nothing),
    "held without a seed, then free": (wn.hold_noise, nothing, nothing),
    "free, then held": (nothing, nothing, held),
    "held, then held otherwise": (held, nothing, partial(wn.hold_noise, seed=1)),
    "held, then mirrored": (held, nothing, mirrored),
    "nested, then off": (
        lambda model: several(model, half, held),
        nothing,
        wn.no_noise,
    ),
    "off, then forced": (wn.no_noise, nothing, wn.force_noise),
    "a schedule goes on": (nothing, a_schedule, nothing),
    "a schedule goes on, off": (wn.no_noise, a_schedule, nothing),
    "evaluation": (nothing, lambda model: model.eval(), nothing),
    "nothing": (nothing, nothing, nothing),
}
events = pytest.mark.parametrize("event", EVENTS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@ways
@events
def test_what_changes_between_forward_and_backward(event: str, way: str, kind: str, size: int) -> None:
    model = KINDS[kind](block(size))
    x = torch.randn(3, size)
    expected = gradients(model, lambda model, x: model(x), x, *EVENTS[event])
    found = gradients(model, lambda model, x: WAYS[way](model, x), x, *EVENTS[event])
    assert_close(found, expected)


@pytest.mark.parametrize(
    "law", [pytest.param(law, marks=[pytest.mark.full] * (law != next(iter(LAWS)))) for law in LAWS]
)
@pytest.mark.parametrize("way", ["reentrant", "non-reentrant", "numbers not repeated"])
def test_each_law(law: str, way: str) -> None:
    for size in SIZES:
        model = wn.add_weight_noise(block(size), LAWS[law])
        x = torch.randn(3, size)
        for event in ("half, then whole", "held, then free", "on, then off"):
            expected = gradients(model, lambda model, x: model(x), x, *EVENTS[event])
            found = gradients(model, lambda model, x: WAYS[way](model, x), x, *EVENTS[event])
            assert_close(found, expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("first", [True, False])
@ways
def test_noise_for_training_alone(way: str, first: bool, size: int) -> None:
    model = wn.add_weight_noise(block(size), 0.3, when="training")
    x = torch.randn(3, size)
    switched = (nothing, lambda model: model.train(not first), nothing)
    expected = gradients(model, lambda model, x: model.train(first)(x), x, *switched)
    found = gradients(model, lambda model, x: WAYS[way](model.train(first), x), x, *switched)
    assert_close(found, expected)


@pytest.mark.parametrize("size", SIZES)
@ways
@events
def test_contexts_within_the_region(event: str, way: str, size: int) -> None:
    """What the region opens itself comes on top of what was open around its forward."""
    model = wn.add_weight_noise(block(size), 0.3)
    x = torch.randn(3, size)

    def inside(x: Tensor) -> Tensor:
        with half(model):
            hidden = model(x)
        with held(model):
            hidden = model(hidden)
            with wn.no_noise(model):
                hidden = model(hidden)
        output: Tensor = model(hidden)
        return output

    expected = gradients(model, lambda model, x: inside(x), x, *EVENTS[event])
    found = gradients(model, lambda model, x: WAYS[way](inside, x), x, *EVENTS[event])
    assert_close(found, expected)


@pytest.mark.parametrize("size", SIZES)
@ways
def test_two_forwards_in_different_contexts_before_one_backward(way: str, size: int) -> None:
    model = wn.add_weight_noise(block(size), 0.3)
    x = torch.randn(3, size)

    def both(call: Any, model: nn.Module, x: Tensor) -> Tensor:
        first = call(model, x)
        with mirrored(model):
            second = call(model, x)
        with wn.no_noise(model):
            third = call(model, x)
        return first + 2 * second + 3 * third

    expected = gradients(model, partial(both, lambda model, x: model(x)), x, *EVENTS["on, then off"])
    found = gradients(model, partial(both, WAYS[way]), x, *EVENTS["on, then off"])
    assert_close(found, expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", [way for way in WAYS if "reentrant" not in way or way == "non-reentrant"])
def test_a_backward_that_is_done_twice_in_different_contexts(way: str, size: int) -> None:
    model = wn.add_weight_noise(block(size), 0.3)
    x = torch.randn(3, size, requires_grad=True)
    with half(model):
        loss = WAYS[way](model, x).square().sum()
    found = []
    for context in (nothing, wn.no_noise, held):
        with context(model):
            found.append(torch.autograd.grad(loss, [x, *model.parameters()], retain_graph=True))
    for other in found[1:]:
        for one, first in zip(other, found[0], strict=True):
            assert torch.equal(one, first)


class Autoencoder(nn.Module):
    """Reads its own weight four times: before a region, twice in it, and after it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(size, size) / size**0.5)
        self.other = nn.Parameter(torch.randn(size, size) / size**0.5)
        self.run: Callable[..., Any] = lambda call, x: call(x)
        self.before = self.after = True

    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.tanh(x @ self.matrix) @ self.other) @ self.matrix.T

    def forward(self, x: Tensor) -> Tensor:
        hidden = x @ self.matrix if self.before else x
        for _ in range(2):
            hidden = self.run(self.middle, hidden)
        return torch.tanh(hidden @ self.matrix.T) if self.after else hidden


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", ["weights", "weights made again", "learned", "masks"])
@pytest.mark.parametrize(
    "event", ["nothing", "half, then whole", "on, then off", "off, then on", "free, then held"]
)
@ways
def test_regions_in_the_forward_that_owns_the_weight(
    way: str, event: str, kind: str, before: bool, after: bool, size: int
) -> None:
    model: Any = KINDS[kind](Autoencoder(size))
    model.before, model.after = before, after
    x = torch.randn(3, size)
    expected = gradients(model, lambda model, x: model(x), x, *EVENTS[event])
    model.run = WAYS[way]
    found = gradients(model, lambda model, x: model(x), x, *EVENTS[event])
    assert_close(found, expected)


@pytest.mark.parametrize("size", SIZES)
@ways
def test_reads_within_a_region_and_outside_of_every_forward(way: str, size: int) -> None:
    model = wn.add_weight_noise(nn.Linear(size, size), 0.3)
    x = torch.randn(3, size)

    def reads(x: Tensor) -> Tensor:
        hidden = torch.tanh(model(x) @ model.weight)
        return torch.tanh(hidden @ model.weight)

    expected = gradients(model, lambda model, x: in_forward(reads, x), x, *EVENTS["half, then whole"])
    found = gradients(model, lambda model, x: WAYS[way](reads, x), x, *EVENTS["half, then whole"])
    assert_close(found, expected)


class Lookup(nn.Module):
    """An embedding of which a batch looks up a few rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(rows, 16)
        self.tokens = torch.tensor([1, 5, 1, 3])

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.embed(self.tokens) + x)


@pytest.mark.parametrize("rows", [20, 400])
@ways
@events
def test_rows_that_are_looked_up(event: str, way: str, rows: int) -> None:
    model = wn.add_weight_noise(Lookup(rows), 0.3)
    x = torch.randn(4, 16)
    expected = gradients(model, lambda model, x: model(x), x, *EVENTS[event])
    found = gradients(model, lambda model, x: WAYS[way](model, x), x, *EVENTS[event])
    assert_close(found, expected)


@pytest.mark.parametrize("size", SIZES)
@events
def test_the_checkpoint_that_a_module_carries(event: str, size: int) -> None:
    """torch.distributed's checkpoint runs in hooks of the module."""
    model = wn.add_weight_noise(nn.Sequential(block(size), block(size)), 0.3)
    x = torch.randn(3, size)
    expected = gradients(model, lambda model, x: model(x), x, *EVENTS[event])
    checkpoint_module(model[0])
    if torch_before("2.7"):
        if event.endswith("then off"):
            pytest.skip("torch before 2.7 hides the forward, and a read while noise is off asks nothing")
        with pytest.raises(RuntimeError, match="does not tell what held in the forward"):
            gradients(model, lambda model, x: model(x), x, *EVENTS[event])
        return
    found = gradients(model, lambda model, x: model(x), x, *EVENTS[event])
    assert_close(found, expected)


@pytest.mark.parametrize("size", SIZES)
@ways
def test_a_hold_that_is_reset_before_the_backward(way: str, size: int) -> None:
    model = wn.add_weight_noise(block(size), 0.3)
    x = torch.randn(3, size)
    found = []
    for call in (lambda model, x: model(x), WAYS[way]):
        with wn.hold_noise(model, seed=0) as hold:
            found.append(gradients(model, call, x, nothing, lambda model: hold.reset(), nothing))
    assert_close(*found)


@pytest.mark.parametrize("size", SIZES)
@ways
def test_noise_that_is_removed_before_the_backward_is_an_error(way: str, size: int) -> None:
    for again in (False, True):
        model = wn.add_weight_noise(block(size), 0.3)
        loss = WAYS[way](model, torch.ones(3, size, requires_grad=True)).sum()
        wn.remove_weight_noise(model)
        if again:
            wn.add_weight_noise(model, 0.3)
        with pytest.raises(
            RuntimeError, match=r"The noise on '0.weight' was removed between a checkpointed forward"
        ):
            loss.backward()


@pytest.mark.parametrize("size", SIZES)
@ways
def test_noise_that_is_added_before_the_backward_stays_out_of_it(way: str, size: int) -> None:
    added = (nothing, lambda model: wn.add_weight_noise(model, 0.3), nothing)
    x, found = torch.randn(3, size), []
    for call in (lambda model, x: model(x), WAYS[way]):
        torch.manual_seed(0)
        found.append(gradients(block(size), call, x, *added))
    assert_close(*found)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["reentrant", "non-reentrant"])
def test_afterwards_the_contexts_are_those_that_are_open(way: str, size: int) -> None:
    model = wn.add_weight_noise(block(size), 0.3)
    loss = WAYS[way](model, torch.ones(3, size, requires_grad=True)).sum()
    with wn.no_noise(model):
        loss.backward()
        assert model[0].weight is model[0]._parameters["weight"]
    assert seen(model[0]) is not model[0]._parameters["weight"]


def test_a_recomputation_that_fails_leaves_the_contexts_as_they_are() -> None:
    model = wn.add_weight_noise(block(8), 0.3)
    calls = []

    def fails(x: Tensor) -> Tensor:
        calls.append(1)
        output: Tensor = model(x)
        if len(calls) > 1:
            raise ValueError("again")
        return output

    loss = to_the_end(fails, torch.ones(3, 8, requires_grad=True)).sum()
    with wn.no_noise(model):
        with pytest.raises(ValueError, match="again"):
            loss.backward()
        assert model[0].weight is model[0]._parameters["weight"]
        assert model[0].parametrizations.weight.only_noise.frames.running == []


def test_the_graph_keeps_no_noisy_weight() -> None:
    model = wn.add_weight_noise(block(64), wn.Custom(lambda weight: weight * 2))

    def large() -> int:
        return sum(type(thing) is Tensor and thing.shape == (64, 64) for thing in gc.get_objects())

    before = large()
    loss = checkpoint(model, torch.ones(3, 64, requires_grad=True), use_reentrant=False).sum()
    assert large() == before
    loss.backward()


class OpensAHold(nn.Module):
    """Holds its noise in its own forward, and may let it move on or draw anew."""

    def __init__(self, kind: str, size: int, moves: str) -> None:
        super().__init__()
        self.inner = KINDS[kind](block(size))
        self.moves = moves

    def forward(self, x: Tensor) -> Tensor:
        with wn.hold_noise(self.inner) as held:
            x = self.inner(x)
            if self.moves:
                getattr(held, self.moves)()
            x = self.inner(x)
        with wn.hold_noise(self.inner):
            output: Tensor = self.inner(x)
        return output


def nested(outer: bool, inner: bool, reentrant: tuple[bool, bool], call: Any, x: Tensor) -> Any:
    """A region in a region, of which torch repeats the numbers of one, of both or of neither."""

    def around(x: Tensor) -> Any:
        return checkpoint(call, x, use_reentrant=reentrant[1], preserve_rng_state=inner)

    return checkpoint(around, x, use_reentrant=reentrant[0], preserve_rng_state=outer)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moves", ["", "reset", "advance"])
@pytest.mark.parametrize("way", ["numbers not repeated", "numbers not repeated, reentrant"])
def test_a_hold_without_a_seed_where_numbers_are_not_repeated(way: str, moves: str, kind: str, size: int) -> None:
    model, x = OpensAHold(kind, size, moves), torch.randn(3, size)
    expected = gradients(model, lambda model, x: model(x), x, nothing, nothing, nothing)
    found = gradients(model, lambda model, x: WAYS[way](model, x), x, nothing, nothing, nothing)
    assert_close(found, expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("repeated", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("reentrant", [(True, True), (True, False), (False, False)])
def test_regions_in_regions_where_numbers_are_not_repeated(
    reentrant: tuple[bool, bool], repeated: tuple[bool, bool], kind: str, size: int
) -> None:
    model, x = KINDS[kind](block(size)), torch.randn(3, size)
    way = partial(nested, *repeated, reentrant)
    expected = gradients(model, lambda model, x: model(x), x, nothing, nothing, nothing)
    assert_close(gradients(model, lambda model, x: way(model, x), x, nothing, nothing, nothing), expected)
