"""Specs as plain data, for the configuration of an experiment in JSON or YAML.

A law is a mapping with its name under ``type`` and the options that differ from their defaults; a list
of laws is a list; numbers and None stand for themselves; a function is a mapping with its name under
``function``. In a mapping spec a class is the key ``"class:torch.nn.LSTM"``. Hydra's ``_target_`` says the same as
``type``, and a list of ``{match, law}`` the same as a mapping, for what reaches no key with a dot in it.

What is read may come from anywhere. So a name imports nothing, and what it names is looked at before it is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from weightnoise._config_names import CLASS, LAWS, NAMES, Reader, named
from weightnoise._errors import SpecError
from weightnoise._select.choose import Spec
from weightnoise.laws import Chain
from weightnoise.laws._given import Given
from weightnoise.laws._law import is_law

_PUBLIC = {"torch.nn": nn, "torch.nn.functional": functional}


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
        config: what a JSON or YAML file with a spec holds, or a DictConfig or ListConfig of OmegaConf. A law may
            have its name under ``_target_`` too; patterns may be a list of ``{"match": pattern, "law": law}``.
        allow: functions and classes of yours that it may name besides, by ``"module.name"`` or ``"module:name"``.

    Raises:
        SpecError: for an unknown law, option or class, for options a law refuses, and for what is not allowed.

    Example:
        >>> spec_from_config({"type": "DropConnect", "p": 0.2})
        DropConnect(p=0.2)
        >>> spec_from_config([{"match": "head.*", "law": None}, {"match": "*", "law": 0.1}])
        {'head.*': None, '*': 0.1}
    """
    reader, config = Reader(tuple(allow)), _plain(config)
    if isinstance(config, list) and any(map(_is_rule, config)):
        config = _matched(config)
    if isinstance(config, dict) and NAMES.isdisjoint(config):
        return {reader.key(key): reader.value(value) for key, value in config.items()}
    spec: Spec = reader.value(config)
    return spec


def _plain(config: Any) -> Any:
    """Mappings and sequences of any kind as dicts and lists, such as those of OmegaConf."""
    if isinstance(config, Mapping):
        return {key: _plain(value) for key, value in config.items()}
    if isinstance(config, Sequence) and not isinstance(config, (str, bytes)):
        return [_plain(value) for value in config]
    return config


def _is_rule(item: Any) -> bool:
    return isinstance(item, dict) and ("match" in item or ("law" in item and NAMES.isdisjoint(item)))


def _matched(rules: list[Any]) -> dict[Any, Any]:
    """A list of rules as the mapping that it stands for."""
    spec: dict[Any, Any] = {}
    for rule in rules:
        if not isinstance(rule, dict) or set(rule) != {"match", "law"}:
            raise SpecError(f"Each item must be {{'match': pattern, 'law': law}}, got {rule!r}.")
        if not isinstance(rule["match"], str):
            raise SpecError(f"{rule!r}: 'match' is one pattern, a text. Give an item for each pattern.")
        if rule["match"] in spec:
            raise SpecError(f"{rule['match']!r} is matched twice: the second law could never apply.")
        spec[rule["match"]] = rule["law"]
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
    return CLASS + _name_of(key) if isinstance(key, type) else str(key)


def _name_of(thing: Any) -> str:
    """The dotted name of ``thing`` in a module; bare for our own laws."""
    name = getattr(thing, "__qualname__", "")
    if LAWS.get(name) is thing:
        return str(name)
    public = [module for module, names in _PUBLIC.items() if getattr(names, name, None) is thing]
    dotted = f"{public[0] if public else thing.__module__}.{name}"
    if "<" in dotted or dotted.startswith("__main__.") or named(dotted) is not thing:
        raise SpecError(f"{thing!r} has no name to read it by. Define it at the top level of a module.")
    return dotted
