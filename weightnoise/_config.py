"""Specs as plain data, for the configuration of an experiment in JSON or YAML.

A law is a mapping with its name under ``type`` and the options that differ from their defaults; a list
of laws is a list; numbers and None stand for themselves; a function is a mapping with its name under
``function``. In a mapping spec a class is the key ``"class:torch.nn.LSTM"``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import torch
from torch import nn

from weightnoise import laws
from weightnoise._errors import SpecError
from weightnoise._select.choose import Spec
from weightnoise.laws import Chain
from weightnoise.laws._law import is_law

_CLASS = "class:"
_TORCH_NN = "torch.nn."


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


def spec_from_config(config: Any) -> Spec:
    """The spec, or the law, that `spec_to_config` wrote.

    A dotted name is imported, which runs the module it names: read configurations that you trust.

    Args:
        config: what a JSON or YAML file with a spec holds.

    Raises:
        SpecError: for an unknown law, option or class, and for options a law refuses.

    Example:
        >>> spec_from_config({"type": "DropConnect", "p": 0.2})
        DropConnect(p=0.2)
    """
    if isinstance(config, Mapping) and "type" not in config:
        return {_key_from_config(key): _from_config(value) for key, value in config.items()}
    spec: Spec = _from_config(config)
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
    raise SpecError(f"{value!r} ({type(value).__name__}) cannot be written as plain data.")


def _differs(law: Any, option: Any) -> bool:
    value = getattr(law, option.name)
    return option.default is MISSING or isinstance(value, torch.Tensor) or bool(value != option.default)


def _from_config(value: Any) -> Any:
    if isinstance(value, Mapping):
        options = {name: _option(item) for name, item in value.items() if name != "type"}
        law = _find(value.get("type"), laws, "law")
        if not isinstance(law, type):
            raise SpecError(f"{value['type']!r} names no law.")
        try:
            return law(**options)
        except (TypeError, ValueError) as error:
            raise SpecError(f"{dict(value)!r}: {error}") from None
    return [_from_config(item) for item in value] if isinstance(value, (list, tuple)) else value


def _option(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _find(value["function"], None, "function") if "function" in value else _from_config(value)
    if isinstance(value, (list, tuple)):
        # A tuple of numbers, or a list of laws, as in Protect(Chain(...)).
        plain = all(isinstance(item, (int, float)) for item in value)
        return tuple(value) if plain else Chain(tuple(map(_from_config, value)))
    return value


def _key_to_config(key: object) -> str:
    return _CLASS + _name_of(key) if isinstance(key, type) else str(key)


def _key_from_config(key: Any) -> Any:
    if not isinstance(key, str) or not key.startswith(_CLASS):
        return key
    found = _find(key.removeprefix(_CLASS), None, "class")
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise SpecError(f"{key!r} is no module class.")
    return found


def _name_of(thing: Any) -> str:
    """The dotted name under which ``thing`` can be imported; bare for our own laws."""
    name = getattr(thing, "__qualname__", "")
    if getattr(laws, name, None) is thing:
        return str(name)
    dotted = f"{_TORCH_NN}{name}" if getattr(nn, name, None) is thing else f"{thing.__module__}.{name}"
    if "<" in dotted or dotted.startswith("__main__.") or _imported(dotted) is not thing:
        raise SpecError(f"{thing!r} has no name to import it by. Define it at the top level of a module.")
    return dotted


def _find(name: Any, ours: Any, kind: str) -> Any:
    found = None
    if isinstance(name, str):
        found = getattr(ours, name, None) if "." not in name else _imported(name)
    if found is None:
        names = [] if ours is None else [one for one in ours.__all__ if is_dataclass(getattr(ours, one))]
        known = f" The laws are {', '.join(names)}." if names else ""
        raise SpecError(f"{name!r} names no {kind}.{known}")
    return found


def _imported(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
