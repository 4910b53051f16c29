"""One draw in a forward, where the module of the weight has no forward, or one of another kind, or another's."""

from __future__ import annotations

import asyncio
import copy
import functools
import types
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import weightnoise as wn

SIZES = [8, 64]
Pair = tuple[Tensor, Tensor]


class Holder(nn.Module):
    """A module that holds a Parameter for others, and has no forward."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(size))


class Uses(nn.Module):
    """Reads Parameters of modules without a forward, twice."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.several = nn.ParameterList([nn.Parameter(torch.eye(size)), nn.Parameter(torch.eye(size))])
        self.named = nn.ParameterDict({"a": nn.Parameter(torch.eye(size))})
        self.holder = Holder(size)
        self.bare = nn.Module()
        self.bare.register_parameter("matrix", nn.Parameter(torch.eye(size)))

    def forward(self, way: str) -> Pair:
        return self.read(way), self.read(way)

    def read(self, way: str) -> Tensor:
        if way == "list":
            return self.several[0]
        if way == "iteration":
            return list(self.several)[1]
        if way == "slice":
            return self.several[1:][0]
        if way == "dict":
            return self.named["a"]
        holder: Any = self.holder if way == "holder" else self.bare
        found: Tensor = holder.matrix
        return found


class Calls(nn.Module):
    """A module around it, so that the forward that reads is not the outermost one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, way: str) -> tuple[Pair, Pair]:
        return self.inner(way), self.inner(way)


WAYS = ["list", "iteration", "slice", "dict", "holder", "bare"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_the_scope_is_the_forward_that_reads(way: str, grad: bool, size: int) -> None:
    model = wn.add_weight_noise(Uses(size), 0.1)
    with torch.set_grad_enabled(grad):
        first, second = Calls(model)(way)
        third = model(way)
    for one, other in (first, second, third):
        assert torch.equal(one, other)
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(second[0], third[0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["copy", "scaled", "off", "removed", "error"])
def test_scopes_end_with_the_call(how: str, size: int) -> None:
    class Fails(Uses):
        fails = False

        def forward(self, way: str) -> Pair:
            found = super().forward(way)
            if self.fails:
                raise ValueError("on purpose")
            return found

    model: Any = wn.add_weight_noise(Fails(size), 0.1)
    assert torch.equal(*model("list"))
    if how in ("copy", "error"):
        model.fails = True
        with pytest.raises(ValueError, match="on purpose"):
            model("list")
        model = copy.deepcopy(model) if how == "copy" else model
        model.fails = False
        assert torch.equal(*model("list"))
    elif how == "removed":
        wn.remove_weight_noise(model)
        assert torch.equal(model("list")[0], torch.eye(size))
    else:
        with wn.scale_noise(model, 0.0) if how == "scaled" else wn.no_noise(model):
            assert torch.equal(model("list")[0], torch.eye(size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("where", ["model", "region"])
def test_in_a_checkpoint(where: str, reentrant: bool, size: int) -> None:
    """Gradients are those at the weight that the forward saw."""

    class Inner(Uses):
        checkpointed = False

        def region(self, x: Tensor) -> Tensor:
            output: Tensor = x @ self.several[0] @ self.several[0].tanh()
            return output

        def forward(self, x: Any) -> Any:
            if self.checkpointed:
                return checkpoint(self.region, x, use_reentrant=reentrant)
            return self.region(x)

    model, x = wn.add_weight_noise(Inner(size), 0.1), torch.randn(3, size, requires_grad=True)

    def gradient(how: str) -> Tensor:
        model.zero_grad()
        torch.manual_seed(3)
        model.checkpointed = how == "region"
        output = checkpoint(model, x, use_reentrant=reentrant) if how == "model" else model(x)
        output.square().sum().backward()
        found = dict(model.named_parameters())["several.0"].grad
        assert found is not None
        return found.clone()

    torch.testing.assert_close(gradient(where), gradient("plain"))


# Forwards whose body goes on after the call.


class Steps(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(size))

    def forward(self) -> Generator[Tensor, None, Tensor]:
        yield self.weight
        yield self.weight
        return self.weight


class Awaits(Steps):
    async def forward(self) -> list[Tensor]:  # type: ignore[override]
        first = self.weight
        await asyncio.sleep(0)
        return [first, self.weight]


class Streams(Steps):
    async def forward(self) -> AsyncGenerator[Tensor, None]:  # type: ignore[override]
        yield self.weight
        await asyncio.sleep(0)
        yield self.weight


async def gathered(model: nn.Module) -> list[Tensor]:
    return [one async for one in model()]


def in_turns(model: nn.Module) -> list[Tensor]:
    """Two calls, whose bodies take turns."""
    one, other = model(), model()
    found = [next(one), next(other), next(one), next(other)]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])
    return found[::2]


async def both(model: nn.Module) -> list[Tensor]:
    one, other = await asyncio.gather(model(), model())
    assert torch.equal(*other)
    assert not torch.equal(one[0], other[0])
    return list(one)


LATER: dict[str, tuple[type[Steps], Callable[[nn.Module], list[Tensor]]]] = {
    "generator": (Steps, lambda model: list(model())),
    "in_turns": (Steps, in_turns),
    "coroutine": (Awaits, lambda model: asyncio.run(model())),
    "together": (Awaits, lambda model: asyncio.run(both(model))),
    "async_generator": (Streams, lambda model: asyncio.run(gathered(model))),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("instance", [False, True])
@pytest.mark.parametrize("kind", LATER)
def test_forwards_that_go_on_later(kind: str, instance: bool, size: int) -> None:
    make, run = LATER[kind]
    model: Any = make(size)
    if instance:
        vars(model)["forward"] = types.MethodType(make.forward, model)
    wn.add_weight_noise(model, 0.1)
    one, other = run(model)
    assert torch.equal(one, other)
    assert not torch.equal(one, torch.eye(size))
    assert not torch.equal(one, run(model)[0])
    with wn.no_noise(model):
        assert run_clean(model, kind)
    assert torch.equal(model.weight, torch.eye(size))  # No scope is left open.


def run_clean(model: Any, kind: str) -> bool:
    if kind == "in_turns":
        return torch.equal(next(model()), model.weight)
    make = LATER["coroutine" if kind == "together" else kind][1]
    return all(one is model.weight for one in make(model))


# Forwards that are set later.


def reads_twice(self: Any, x: Tensor) -> Tensor:
    assert torch.equal(self.weight, self.weight)
    return nn.functional.linear(x, self.weight, self.bias)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["method", "function", "partial"])
def test_a_forward_that_is_set_after_the_noise(how: str, size: int) -> None:
    model: Any = wn.add_weight_noise(nn.Linear(size, size), 0.1)
    model.forward = {
        "method": types.MethodType(reads_twice, model),
        "function": lambda x: reads_twice(model, x),
        "partial": functools.partial(reads_twice, model),
    }[how]
    x = torch.randn(2, size)
    assert not torch.equal(model(x), model(x))
    wn.remove_weight_noise(model)
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("estimator", ["flipout", "local"])
def test_with_noise_of_each_example_it_is_refused(estimator: Any, size: int) -> None:
    model: Any = wn.add_weight_noise(nn.Linear(size, size), 0.1, estimator=estimator)
    before = model.forward
    model.forward = types.MethodType(reads_twice, model)
    with pytest.raises(wn.UnsupportedParameterError, match=r"'weight' is read by a forward that was set"):
        model(torch.randn(2, size))
    with wn.no_noise(model):
        model(torch.randn(2, size))
    model.forward = lambda x: before(x)  # Around the layer's own, as accelerate does it.
    assert not torch.equal(*model(torch.ones(2, size)))
    del model.forward
    model(torch.randn(2, size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("estimator", ["flipout", "local", "shared"])
def test_a_forward_that_the_class_gets_after_the_noise(estimator: Any, size: int) -> None:
    class Own(nn.Linear):
        pass

    model = wn.add_weight_noise(Own(size, size), 0.1, estimator=estimator)
    Own.forward = reads_twice  # type: ignore[method-assign, assignment]
    x = torch.randn(2, size)
    if estimator == "shared":
        assert not torch.equal(model(x), model(x))
        return
    with pytest.raises(wn.UnsupportedParameterError, match="was given another forward"):
        model(x)


def test_an_embedding_whose_class_gets_a_forward_later() -> None:
    class Own(nn.Embedding):
        pass

    model = wn.add_weight_noise(Own(512, 64), 0.1)
    Own.forward = lambda self, tokens: self.weight[tokens] * 0  # type: ignore[method-assign, assignment]
    assert not model(torch.tensor([1, 2])).any()
