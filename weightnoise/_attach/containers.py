"""Overrides for nn.ParameterList and nn.ParameterDict, which make a Parameter of every tensor they are given.

Of a noisy value that Parameter would be a copy with the noise in it for good, and no gradient would reach the one
that it came from. So values are read noisy, what takes a Parameter out gives the Parameter itself, and what would
put a noisy value into a container is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from weightnoise._errors import UnsupportedParameterError
from weightnoise._noise.outside import is_noisy_outside

CleanReads: TypeAlias = Callable[[nn.Module], AbstractContextManager[None]]

# Where torch takes values out of an iterable and makes Parameters of them.
_WRAPPING = (nn.ParameterList.extend.__code__, nn.ParameterDict.update.__code__)


def container_overrides(base: type[nn.Module], clean_reads: CleanReads) -> dict[str, Any]:
    """The methods of a noisy container of Parameters; none for any other module."""
    if issubclass(base, nn.ParameterList):
        return _list_overrides(base, clean_reads)
    return _dict_overrides(base, clean_reads) if issubclass(base, nn.ParameterDict) else {}


class NoisySlice(Sequence[Any]):
    """A slice of a noisy nn.ParameterList: no module, but a view, each read of which is one of the list."""

    def __init__(self, owner: nn.ParameterList, places: range) -> None:
        self._owner = owner
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        places = self._places[index]
        return NoisySlice(self._owner, places) if isinstance(places, range) else self._owner[places]

    def __iter__(self) -> Iterator[Any]:
        return _read_out(self._owner, (self._owner[place] for place in self._places))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # What Python, torch and `copy` look for.
            raise AttributeError(name)
        key = str(self._places[0]) if self._places else None
        raise AttributeError(_SLICE.format(attribute=name, name=_name(self._owner, key)))


def _list_overrides(base: type[nn.ParameterList], clean_reads: CleanReads) -> dict[str, Any]:
    def get(self: nn.ParameterList, index: Any) -> Any:
        if not isinstance(index, slice):
            return base.__getitem__(self, index)
        places = range(len(self))[index]
        if _reads_noisy(self):
            return [self[place] for place in places] if torch.compiler.is_compiling() else NoisySlice(self, places)
        part = base.__getitem__(self, index)
        if type(part) is type(self):
            part.__class__ = base  # torch makes it of the noisy class.
        return part

    def put(self: nn.ParameterList, index: Any, value: Any) -> None:
        _refuse_tensors(self, [value], None if isinstance(index, slice) else str(index))
        base.__setitem__(self, index, value)

    def append(self: nn.ParameterList, value: Any) -> nn.ParameterList:
        _refuse_tensors(self, [value])  # Before torch counts it.
        return base.append(self, value)

    def extend(self: nn.ParameterList, values: Any) -> nn.ParameterList:
        if isinstance(values, Iterable) and not isinstance(values, Tensor):
            values = list(values)
            _refuse_tensors(self, values)
        return base.extend(self, values)

    own = {"__getitem__": get, "__setitem__": put, "append": append, "extend": extend}
    return {
        **own,
        "__iter__": _iterating(base, "__iter__"),
        "extra_repr": _quietly(base, "extra_repr", clean_reads),
    }


def _dict_overrides(base: type[nn.ParameterDict], clean_reads: CleanReads) -> dict[str, Any]:
    def put(self: nn.ParameterDict, key: str, value: Any) -> None:
        _refuse_tensors(self, [value], key)
        base.__setitem__(self, key, value)

    def update(self: nn.ParameterDict, parameters: Any) -> None:
        if isinstance(parameters, (Mapping, nn.ParameterDict)):
            _refuse_tensors(self, list(parameters.values()))
        elif isinstance(parameters, Iterable):
            parameters = list(parameters)
            _refuse_tensors(self, [value for pair in parameters if isinstance(pair, Sequence) for value in pair])
        base.update(self, parameters)

    def from_keys(self: nn.ParameterDict, keys: Iterable[str], default: Any = None) -> nn.ParameterDict:
        _refuse_tensors(self, [default])
        return base.fromkeys(self, keys, default)

    own = {"__setitem__": put, "update": update, "fromkeys": from_keys}
    own |= {name: _iterating(base, name) for name in ("values", "items")}
    own |= {name: _quietly(base, name, clean_reads) for name in ("pop", "popitem", "extra_repr")}
    return own | {name: _building(base, name) for name in ("copy", "__or__", "__ror__")}


def _quietly(base: type[nn.Module], name: str, clean_reads: CleanReads) -> Callable[..., Any]:
    """The method, to which the container reads clean: it takes a Parameter out, or looks at it alone."""
    method = getattr(base, name)

    def call(self: nn.Module, *args: Any) -> Any:
        with clean_reads(self):
            return method(self, *args)

    return call


def _building(base: type[nn.Module], name: str) -> Callable[..., Any]:
    """The method, which makes another container of the same Parameters: that one would be without noise."""
    method = getattr(base, name)

    def call(self: nn.Module, *args: Any) -> Any:
        if _reads_noisy(self):
            raise UnsupportedParameterError(_BUILDS.format(name=_name(self), kind=_kind(self)))
        return method(self, *args)

    return call


def _iterating(base: type[nn.Module], name: str) -> Callable[..., Any]:
    method = getattr(base, name)

    def call(self: nn.Module) -> Iterator[Any]:
        return _read_out(self, method(self))

    return call


def _read_out(container: nn.Module, values: Iterable[Any]) -> Iterator[Any]:
    """The values, unless torch takes them to make Parameters of them."""
    for value in values:
        if not torch.compiler.is_compiling() and _is_wrapped(sys._getframe(1)) and _reads_noisy(container):
            raise UnsupportedParameterError(_BUILDS.format(name=_name(container), kind=_kind(container)))
        yield value


def _is_wrapped(asking: FrameType) -> bool:
    return asking.f_code in _WRAPPING


def _refuse_tensors(container: nn.Module, values: Iterable[Any], key: str | None = None) -> None:
    """Refuse what torch would make new Parameters of, while noise is on."""
    if not _reads_noisy(container):
        return
    for value in values:
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            raise UnsupportedParameterError(_WRAPS.format(name=_name(container, key), kind=_kind(container)))


def _reads_noisy(container: nn.Module) -> bool:
    """Whether a read of any of its values is noisy now."""
    holder: Any = container.__dict__["_modules"].get("parametrizations")
    module_noise = None if holder is None else holder.__dict__.get("module_noise")
    if module_noise is None or not module_noise.live():
        return False
    running = module_noise.frames.running
    return running[-1] is not None if running else is_noisy_outside(module_noise.noises[0])


def _name(container: nn.Module, key: str | None = None) -> str:
    """The full name of a noisy value: that of the key, or the first."""
    holder: Any = container._modules["parametrizations"]
    named = {noise.tensor_name: noise.name for noise in holder.module_noise.noises}
    name: str = named.get(key, next(iter(named.values())))
    return name


def _kind(container: nn.Module) -> str:
    return "list" if isinstance(container, nn.ParameterList) else "dict"


_WAY_OUT = "do it inside `with weightnoise.no_noise(model):`, where they are the Parameters"

_WRAPS = (
    "The {kind} of parameter '{name}' would make a new Parameter of the tensor that is put into it: of a noisy "
    "value, with the noise in it for good and no gradient to where it came from. If the tensor is none, wrap it "
    f"yourself with nn.Parameter(tensor). Else {_WAY_OUT}."
)

_BUILDS = (
    "Another container made of the {kind} of parameter '{name}' while noise is on would hold new Parameters with "
    f"the noise in them for good, and no gradient to the ones here. Read its values one by one, or {_WAY_OUT}."
)

_SLICE = (
    "A slice of the list of parameter '{name}' is no module while noise is on, and has no '{attribute}': it is a "
    f"sequence of noisy values. For the Parameters, {_WAY_OUT}."
)
