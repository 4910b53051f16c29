"""Contexts around functions of every kind: open while the body runs, and not while it waits."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.cases import NO_CONTEXTS, needs_torch
from tests.helpers import seen
from weightnoise._noise.context import NoiseContext

SIZES = [8, 64]  # From 2048 numbers on the C engine draws.


def make(size: int = 8) -> nn.Linear:
    return wn.add_weight_noise(nn.Linear(size, size), 0.1, when="training").eval()


def is_off(model: nn.Module) -> bool:
    return seen(model) is model._parameters["weight"]


def shown(model: nn.Module) -> tuple[Any, ...]:
    """What the contexts say about the noise of a model."""
    control = model.parametrizations.weight[0].control
    return len(control.overrides), control.off, control.gated, control.held is None, control.factor


CONTEXTS: dict[str, Callable[[nn.Module], NoiseContext]] = {
    "no_noise": wn.no_noise,
    "hold_noise": wn.hold_noise,
    "seeded": lambda model: wn.hold_noise(model, seed=1, sign=-1),
    "scale_noise": lambda model: wn.scale_noise(model, 2.0),
    "force_noise": wn.force_noise,
}

Reads = list[tuple[Any, ...]]


def plain(model: nn.Module, reads: Reads, context: NoiseContext) -> Any:
    @context
    def function() -> None:
        reads.append(shown(model))

    return function


def method(model: nn.Module, reads: Reads, context: NoiseContext) -> Any:
    class Own:
        @context
        def function(self) -> None:
            reads.append(shown(model))

    return Own().function


def static_method(model: nn.Module, reads: Reads, context: NoiseContext) -> Any:
    class Own:
        @context
        @staticmethod
        def function() -> None:
            reads.append(shown(model))

    return Own().function


def class_method(model: nn.Module, reads: Reads, context: NoiseContext) -> Any:
    class Own:
        @context
        @classmethod
        def function(cls) -> None:
            assert cls is Own
            reads.append(shown(model))

    return Own.function


def generator(model: nn.Module, reads: Reads, context: NoiseContext) -> Any:
    @context
    def function() -> Iterator[int]:
        for _ in range(2):
            reads.append(shown(model))
            yield 1
        reads.append(shown(model))

    return lambda: list(function())


def hidden_generator(model: nn.Module, reads: Reads, context: NoiseContext) -> Any:
    function = context(lambda: (reads.append(shown(model)) for _ in range(2)))  # type: ignore[func-returns-value]
    return lambda: list(function())


def partial_generator(model: nn.Module, reads: Reads, context: NoiseContext) -> Any:
    def function(times: int) -> Iterator[None]:
        for _ in range(times):
            reads.append(shown(model))
            yield

    decorated = context(functools.partial(function, 2))
    return lambda: list(decorated())


def coroutine(model: nn.Module, reads: Reads, context: NoiseContext) -> Any:
    @context
    async def function() -> None:
        reads.append(shown(model))
        await asyncio.sleep(0)
        reads.append(shown(model))

    return lambda: asyncio.run(function())


def hidden_coroutine(model: nn.Module, reads: Reads, context: NoiseContext) -> Any:
    async def function() -> None:
        await asyncio.sleep(0)
        reads.append(shown(model))

    decorated = context(lambda: function())
    return lambda: asyncio.run(decorated())


def async_generator(model: nn.Module, reads: Reads, context: NoiseContext) -> Any:
    @context
    async def function() -> AsyncGenerator[int, None]:
        reads.append(shown(model))
        await asyncio.sleep(0)
        yield 1
        reads.append(shown(model))

    async def run() -> None:
        assert [value async for value in function()] == [1]

    return lambda: asyncio.run(run())


def hidden_async_generator(model: nn.Module, reads: Reads, context: NoiseContext) -> Any:
    async def function() -> AsyncGenerator[None, None]:
        reads.append(shown(model))
        yield

    async def run() -> None:
        assert [value async for value in context(lambda: function())()] == [None]

    return lambda: asyncio.run(run())


KINDS = [plain, method, static_method, class_method, generator, hidden_generator, partial_generator]
KINDS += [coroutine, hidden_coroutine, async_generator, hidden_async_generator]


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_body_runs_inside(kind: Callable[..., Any], name: str) -> None:
    model, reads = make(), list[tuple[Any, ...]]()
    before = shown(model)
    context = CONTEXTS[name](model)
    with context:
        inside = shown(model)
    assert inside != before
    call = kind(model, reads, context)
    for _ in range(2):
        reads.clear()
        call()
        assert reads
        assert set(reads) == {inside}
        assert shown(model) == before


@pytest.mark.parametrize("size", SIZES)
def test_a_generator_holds_one_draw_while_others_read_afresh(size: int) -> None:
    model = make(size).train()

    @wn.hold_noise(model)
    def reads() -> Generator[Tensor]:
        while True:
            yield model.weight.detach()

    one, other = reads(), reads()
    first, second = next(one), next(other)
    assert not torch.equal(first, second)
    assert not torch.equal(seen(model), seen(model))
    assert torch.equal(next(one), first)
    assert torch.equal(next(other), second)
    one.close()
    assert torch.equal(next(other), second)
    with wn.no_noise(model):
        assert is_off(model)
        assert torch.equal(next(other), model.weight)
    assert torch.equal(next(other), second)
    assert shown(model)[0] == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [None, 3])
def test_a_reset_in_a_generator_lasts(size: int, seed: int | None) -> None:
    model = make(size).train()
    held = wn.hold_noise(model, seed=seed)

    @held
    def reads() -> Iterator[Tensor]:
        for _ in range(2):
            for _ in range(2):
                yield model.weight.detach()
            held.reset()

    first, again, second, once_more = reads()
    assert torch.equal(first, again)
    assert torch.equal(second, once_more)
    assert not torch.equal(first, second)
    assert shown(model)[0] == 0


@pytest.mark.parametrize("size", SIZES)
def test_resets_are_counted_by_the_entry(size: int) -> None:
    model = make(size).train()
    held = wn.hold_noise(model, seed=0)
    with held:
        held.reset()
        first = model.weight.detach()
        with held:
            pass
        held.reset()
        assert not torch.equal(model.weight, first)


def test_generators_are_sent_to_thrown_at_closed_and_return() -> None:
    model, off = make(), list[bool]()

    @wn.no_noise(model)
    def talk(word: str) -> Generator[str, str, str]:
        """Talks."""
        try:
            while word != "bye":
                off.append(is_off(model))
                try:
                    word = yield word + "!"
                except KeyError as error:
                    off.append(is_off(model))
                    word = repr(error)
            return "done"
        finally:
            off.append(is_off(model))

    wn.remove_weight_noise(model)
    wn.add_weight_noise(model, 0.1)
    assert inspect.isgeneratorfunction(talk)
    assert (talk.__name__, talk.__doc__) == ("talk", "Talks.")
    steps = talk("a")
    assert next(steps) == "a!"
    assert not is_off(model)
    assert steps.send("b") == "b!"
    assert steps.throw(KeyError("c")) == "KeyError('c')!"
    with pytest.raises(StopIteration) as stopped:
        steps.send("bye")
    assert stopped.value.value == "done"
    closed, failed = talk("a"), talk("a")
    for steps in (closed, failed):
        next(steps)
    closed.close()
    with pytest.raises(ZeroDivisionError):
        failed.throw(ZeroDivisionError)
    assert off
    assert all(off)
    assert shown(model)[0] == 0


def test_tasks_take_turns() -> None:
    model = wn.add_weight_noise(nn.Linear(64, 64), 0.1)

    @wn.hold_noise(model)
    async def held() -> list[Tensor]:
        reads = []
        for _ in range(3):
            reads.append(model.weight.detach())
            await asyncio.sleep(0)
        return reads

    @wn.no_noise(model)
    async def off() -> bool:
        first = is_off(model)
        await asyncio.sleep(0)
        return first and is_off(model)

    async def fresh() -> bool:
        await asyncio.sleep(0)
        return not torch.equal(seen(model), seen(model))

    async def run() -> tuple[Any, ...]:
        return await asyncio.gather(held(), held(), off(), fresh())

    one, other, was_off, was_fresh = asyncio.run(run())
    assert was_off
    assert was_fresh
    for reads in (one, other):
        assert all(torch.equal(read, reads[0]) for read in reads)
    assert not torch.equal(one[0], other[0])
    assert inspect.iscoroutinefunction(held)


def test_coroutines_are_cancelled_inside() -> None:
    model, off = wn.add_weight_noise(nn.Linear(8, 8), 0.1), list[bool]()

    @wn.no_noise(model)
    async def wait() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            off.append(is_off(model))

    async def run() -> None:
        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        assert not is_off(model)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert off == [True]


def test_asynchronous_generators_are_sent_to_thrown_at_and_closed() -> None:
    model, off = wn.add_weight_noise(nn.Linear(8, 8), 0.1), list[bool]()

    @wn.no_noise(model)
    async def talk(word: str) -> AsyncGenerator[str, str]:
        try:
            while word != "bye":
                off.append(is_off(model))
                await asyncio.sleep(0)
                try:
                    word = yield word + "!"
                except KeyError as error:
                    off.append(is_off(model))
                    word = repr(error)
        finally:
            await asyncio.sleep(0)
            off.append(is_off(model))

    async def run() -> None:
        steps = talk("a")
        assert await anext(steps) == "a!"
        assert not is_off(model)
        assert await steps.asend("b") == "b!"
        assert await steps.athrow(KeyError("c")) == "KeyError('c')!"
        with pytest.raises(StopAsyncIteration):
            await steps.asend("bye")
        closed, failed = talk("a"), talk("a")
        for steps in (closed, failed):
            await anext(steps)
        await closed.aclose()
        with pytest.raises(ZeroDivisionError):
            await failed.athrow(ZeroDivisionError())

    asyncio.run(run())
    assert inspect.isasyncgenfunction(talk)
    assert off
    assert all(off)
    assert shown(model)[0] == 0


def test_what_is_no_function_is_refused() -> None:
    model = make()
    for thing in (nn.Linear, property(is_off), functools.partialmethod(is_off), 3):
        with pytest.raises(TypeError, match="decorates functions and methods, got "):
            wn.no_noise(model)(thing)


@pytest.mark.compile
@needs_torch("2.9", NO_CONTEXTS)
def test_a_decorated_function_compiles() -> None:
    model, x = wn.add_weight_noise(nn.Linear(8, 8), 0.1), torch.randn(3, 8)

    @torch.compile(backend="aot_eager", fullgraph=True)
    @wn.no_noise(model)
    def clean(x: Tensor) -> Tensor:
        output: Tensor = model(x)
        return output

    with wn.no_noise(model):
        expected = model(x)
    torch.testing.assert_close(clean(x), expected)
