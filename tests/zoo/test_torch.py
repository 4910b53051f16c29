"""torch's own modules, with the inputs of torch's own tests."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.zoo.checks import CHECKS, Animal
from weightnoise._random import philox

pytest.importorskip("expecttest", reason="torch's tests need it")

_SAMPLES = 2  # Of each module, those that are made differently.


def _all_modules() -> Iterable[Any]:
    """What torch knows of its modules; the settings that come with it are for its own tests, and put back."""
    from torch.testing._internal import common_modules, common_utils

    torch._C.ScriptFunction.__call__ = common_utils.func_call  # type: ignore[method-assign]
    torch._C.ScriptMethod.__call__ = common_utils.meth_call  # type: ignore[method-assign]
    setattr(torch.backends, "__allow_nonbracketed_mutation_flag", True)
    return common_modules.module_db


def _samples(info: Any) -> Iterator[tuple[Any, Any, bool]]:
    """How modules of a class are made and called, and their mode; each way of making them in one mode."""
    for training in (False, True):
        torch.manual_seed(0)
        settings = {"device": "cpu", "dtype": torch.float32, "requires_grad": False, "training": training}
        found: dict[str, tuple[Any, Any]] = {}
        for sample in info.module_inputs_func(info, **settings):
            found.setdefault(repr(sample.constructor_input), (sample.constructor_input, sample.forward_input))
        ways = list(found.values())
        yield from ((*way, training) for way in ways[int(training) : 2 * _SAMPLES : 2][:_SAMPLES])


def _made(cls: Callable[..., nn.Module], build: Any, call: Any, training: bool) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "enable_nested_tensor|Lazy modules")
        model = cls(*build.args, **build.kwargs).train(training)
    if isinstance(model, nn.modules.lazy.LazyModuleMixin):
        model(*call.args, **call.kwargs)
    return model


def _animals() -> dict[str, list[Animal]]:
    animals: dict[str, list[Animal]] = {}
    for info in _all_modules():
        for build, call, training in _samples(info):

            def make(cls: Any = info.module_cls, of: Any = (build, call, training)) -> nn.Module:
                return _made(cls, *of)

            def inputs(call: Any = call) -> Any:
                return call.args, call.kwargs

            if list(make().parameters()):
                animals.setdefault(info.name, []).append(Animal(make, inputs))
    return animals


ANIMALS = _animals()


def test_the_zoo_is_large() -> None:
    assert len(ANIMALS) > 30
    assert sum(map(len, ANIMALS.values())) > 80


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ANIMALS)
def test_a_module_of_torch(name: str, check: Callable[[Animal], None], monkeypatch: pytest.MonkeyPatch) -> None:
    for number, animal in enumerate(ANIMALS[name]):
        if number % 2:
            monkeypatch.setattr(philox, "LEAST", 1)  # These weights are small: let the engine draw all the same.
        check(animal)
