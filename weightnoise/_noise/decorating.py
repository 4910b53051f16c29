"""Functions whose body runs inside a context, whatever their kind: plain, generators and asynchronous ones."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager
from typing import Any, TypeAlias, TypeVar

from weightnoise._errors import OptionTypeError

FunctionT = TypeVar("FunctionT")

# Makes the context of one call: it is entered whenever the body goes on, and left whenever that waits.
OfOneCall: TypeAlias = Callable[[], AbstractContextManager[object]]


def decorated(function: FunctionT, of_one_call: OfOneCall) -> FunctionT:
    """``function`` with its body inside the context, and not what runs while the body waits."""
    made: Any
    if isinstance(function, (staticmethod, classmethod)):
        made = type(function)(decorated(function.__func__, of_one_call))
    elif isinstance(function, type) or not callable(function):
        raise OptionTypeError(_NO_FUNCTION.format(function))
    elif inspect.isgeneratorfunction(function):
        made = _generator_function(function, of_one_call)
    elif inspect.iscoroutinefunction(function):
        made = _coroutine_function(function, of_one_call)
    elif inspect.isasyncgenfunction(function):
        made = _async_generator_function(function, of_one_call)
    else:
        made = _plain_function(function, of_one_call)
    return made  # type: ignore[no-any-return]


def _plain_function(function: Callable[..., Any], of_one_call: OfOneCall) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        context = of_one_call()
        with context:
            result = function(*args, **kwargs)
        # What another decorator, a partial or a lambda hides.
        if isinstance(result, types.GeneratorType):
            return _resumed(result, context)
        if isinstance(result, types.CoroutineType):
            return _coroutine_function(lambda: result, lambda: context)()
        if isinstance(result, types.AsyncGeneratorType):
            return _async_generator_function(lambda: result, lambda: context)()
        return result

    return call


def _generator_function(function: Callable[..., Any], of_one_call: OfOneCall) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        return (yield from _resumed(function(*args, **kwargs), of_one_call()))

    return call


def _coroutine_function(function: Callable[..., Any], of_one_call: OfOneCall) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await _awaited(function(*args, **kwargs), of_one_call())

    return call


def _async_generator_function(function: Callable[..., Any], of_one_call: OfOneCall) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        steps, context = function(*args, **kwargs), of_one_call()
        step = steps.asend(None)
        while True:
            try:
                response = await _awaited(step, context)
            except StopAsyncIteration:
                return
            try:
                given = yield response
            except GeneratorExit:
                await _awaited(steps.aclose(), context)
                raise
            except BaseException as error:
                step = steps.athrow(error)
            else:
                step = steps.asend(given)

    return call


def _resumed(steps: Any, context: AbstractContextManager[object]) -> Generator[Any, Any, Any]:
    """The steps of a generator, or of what is awaited, each inside the context."""
    go_on, given = steps.send, None
    try:
        while True:
            with context:
                response = go_on(given)
            try:
                given = yield response
            except GeneratorExit:
                with context:
                    steps.close()
                raise
            except BaseException as error:
                go_on, given = steps.throw, error
            else:
                go_on = steps.send
    except StopIteration as stop:
        return stop.value


@types.coroutine
def _awaited(steps: Any, context: AbstractContextManager[object]) -> Generator[Any, Any, Any]:
    return (yield from _resumed(steps, context))


_NO_FUNCTION = (
    "A noise context decorates functions and methods, got {0!r}. Decorate the methods of a class one by one, "
    "and below @property."
)
