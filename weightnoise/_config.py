"""Specs as plain data, for the configuration of an experiment in JSON or YAML.

A law is a mapping with its name under ``type`` and the options that differ from their defaults; a list
of laws is a list; numbers and None stand for themselves; a function is a mapping with its name under
``function``. In a mapping spec a class is the key ``"class:torch.nn.LSTM"``.

What is read may come from anywhere. So a name imports nothing, and what it names is looked at before it is called.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from weightnoise import devices, laws
from weightnoise._errors import SpecError
from weightnoise._select.choose import Spec
from weightnoise.laws import ActivationLaw, Chain, Noise
from weightnoise.laws._given import Given
from weightnoise.laws._law import is_law

_CLASS = "class:"
_DEVICES = "devices."
_PUBLIC = {"torch.nn": nn, "torch.nn.functional": functional}
_LAWS = {name: law for name in laws.__all__ if is_dataclass(law := getattr(laws, name))}


def spec_to_config(spec: Spec) -> Any:
    """A spec, or a law, as plain data: numbers, strings, lists and dicts with string keys.

    Laws of your own are written with their full dotted name, if they are dataclasses of a module
    that can be imported; so are functions, such as that of a `Custom`.

    Args:
        spec: a number, law, list of laws or mapping.

    Raises:
        SpecError: for what cannot be written: a callable spec, a lambda, a tensor of scores.

    Example:
        >>> spec_to_config({"head.*": None, nn.LSTM: [Clip(2.0), Gaussian(0.1, relative_to="std")]})
        ... # doctest: +NORMALIZE_WHITESPACE
        {'head.*': None, 'class:torch.nn.LSTM':
          [{'type': 'Clip', 'k': 2.0}, {'type': 'Gaussian', 'std': 0.1, 'relative_to': 'std'}]}
    """
    if isinstance(spec, Mapping):
        return {_key_to_config(key): _to_config(value) for key, value in spec.items()}
    return _to_config(spec)


def spec_from_config(config: Any, *, allow: Iterable[Any] = ()) -> Spec:
    """The spec, or the law, that `spec_to_config` wrote.

    A configuration imports nothing. It may name the laws of this library and its devices (``{"type":
    "devices.SONOS", "time": 86400.0}``), modules of ``torch.nn``, functions of
    ``torch.nn.functional``, and, of modules that your program has imported, module classes and dataclasses with
    the methods of a law. All else that it names has to be in ``allow``. What it names is looked at before anything
    is called; what is called then is the class of a law, with the options of the configuration.

    Args:
        config: what a JSON or YAML file with a spec holds.
        allow: functions and classes of yours that it may name besides, by ``"module.name"`` or ``"module:name"``.

    Raises:
        SpecError: for an unknown law, option or class, for options a law refuses, and for what is not allowed.

    Example:
        >>> spec_from_config({"type": "DropConnect", "p": 0.2})
        DropConnect(p=0.2)
    """
    reader = _Reader(tuple(allow))
    if isinstance(config, Mapping) and "type" not in config:
        return {reader.key(key): reader.value(value) for key, value in config.items()}
    spec: Spec = reader.value(config)
    return spec


def _to_config(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Chain):
        return [_to_config(law) for law in value.laws]
    if isinstance(value, (list, tuple)):
        return [_to_config(item) for item in value]
    if is_dataclass(value) and is_law(value):
        options = {
            option.name: _to_config(getattr(value, option.name))
            for option in fields(value)
            if _differs(value, option)
        }
        return {"type": _name_of(type(value)), **options}
    if callable(value) and not is_law(value):
        return {"function": _name_of(value)}
    if isinstance(value, Given) and value.file is not None:
        return value.file
    hint = ""
    if isinstance(value, Given):
        hint = " Save the tensors with torch.save and give the name of the file in their place."
    raise SpecError(f"{value!r} ({type(value).__name__}) cannot be written as plain data.{hint}")


def _differs(law: Any, option: Any) -> bool:
    value = getattr(law, option.name)
    return option.default is MISSING or isinstance(value, torch.Tensor) or bool(value != option.default)


def _key_to_config(key: object) -> str:
    return _CLASS + _name_of(key) if isinstance(key, type) else str(key)


def _name_of(thing: Any) -> str:
    """The dotted name of ``thing`` in a module; bare for our own laws."""
    name = getattr(thing, "__qualname__", "")
    if _LAWS.get(name) is thing:
        return str(name)
    public = [module for module, names in _PUBLIC.items() if getattr(names, name, None) is thing]
    dotted = f"{public[0] if public else thing.__module__}.{name}"
    if "<" in dotted or dotted.startswith("__main__.") or _named(dotted) is not thing:
        raise SpecError(f"{thing!r} has no name to read it by. Define it at the top level of a module.")
    return dotted


class _Reader:
    """Plain data to laws: names are looked up, and what they name is looked at, before anything is called."""

    def __init__(self, allowed: tuple[Any, ...]) -> None:
        self._allowed = allowed

    def value(self, value: Any) -> Any:
        """Check that an object may stand in a spec."""
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        law = self._law(value.get("type"))
        options = {name: self._option(item) for name, item in value.items() if name != "type"}
        try:
            return law(**options)
        except (TypeError, ValueError) as error:
            raise SpecError(f"{dict(value)!r}: {error}") from None

    def key(self, key: Any) -> Any:
        """A pattern, or the class that it names."""
        if not isinstance(key, str) or not key.startswith(_CLASS):
            return key
        name = key.removeprefix(_CLASS)
        found = _named(name)
        if found is None:
            raise SpecError(_UNKNOWN.format(name=name, kind="class"))
        if not isinstance(found, type) or not issubclass(found, nn.Module):
            raise SpecError(f"{key!r} is no module class.")
        return found

    def _option(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return self._function(value["function"]) if "function" in value else self.value(value)
        if isinstance(value, (list, tuple)):
            # A tuple of numbers or names or of such tuples, or a list of laws, as in Protect(Chain(...)).
            numbers = _as_numbers(value)
            return Chain(tuple(map(self.value, value))) if numbers is _NO_NUMBERS else numbers
        return value

    def _law(self, name: Any) -> Any:
        if isinstance(name, str) and name in _LAWS:
            return _LAWS[name]
        if isinstance(name, str) and name.removeprefix(_DEVICES) in devices.__all__:
            return partial(replace, getattr(devices, name.removeprefix(_DEVICES)))
        if not isinstance(name, str) or not _parted(name)[0]:
            raise SpecError(f"{name!r} names no law. The laws are {', '.join(_LAWS)}.")
        found = _named(name)
        if found is None:
            raise SpecError(_UNKNOWN.format(name=name, kind="law"))
        law = isinstance(found, type) and issubclass(found, (Noise, ActivationLaw))
        if not law or not (is_dataclass(found) or self._may(found)):
            raise SpecError(
                f"{name!r} is no law: nothing was called. A law is a class with the methods draw and apply; one "
                "that is no dataclass has to be allowed: spec_from_config(config, allow=[...])."
            )
        return found

    def _function(self, name: Any) -> Any:
        found = _named(name) if isinstance(name, str) else None
        if found is None:
            raise SpecError(_UNKNOWN.format(name=name, kind="function"))
        module, end = _parted(name)
        ours = module == functional.__name__ and not end.startswith("_") and inspect.isroutine(found)
        if not ours and not self._may(found):
            raise SpecError(
                f"{name!r} may not be named by a configuration: nothing was called. If you trust it, "
                f"allow it: spec_from_config(config, allow=[{end}])."
            )
        return found

    def _may(self, found: Any) -> bool:
        return any(found is one for one in self._allowed)


_UNKNOWN = (
    "{name!r} names no {kind} of a module that is imported. A configuration imports nothing: import the module "
    "before it is read."
)


_NO_NUMBERS: Any = object()


def _as_numbers(value: Any) -> Any:
    """Lists of numbers, names and None, or of lists of them, as tuples; `_NO_NUMBERS` for anything else."""
    if value is None or isinstance(value, (int, float, str)):
        return value
    items = [_as_numbers(item) for item in value] if isinstance(value, (list, tuple)) else [_NO_NUMBERS]
    return _NO_NUMBERS if any(item is _NO_NUMBERS for item in items) else tuple(items)


def _parted(name: str) -> tuple[str, str]:
    """The module and the last name of ``module.name`` or ``module:name``."""
    module, _, last = name.replace(":", ".").rpartition(".")
    return module, last


def _named(name: str) -> Any:
    """The thing of that name in a module that is imported already; no code runs for the look."""
    parts = name.replace(":", ".").split(".")
    for end in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:end]))
        if found is not None:
            for part in parts[end:]:
                found = getattr(found, "__dict__", {}).get(part)
            return found
    return None
