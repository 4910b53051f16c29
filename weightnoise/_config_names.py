"""The names in a configuration: they import nothing, and what they name is looked at before it is called."""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import is_dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from torch import nn
from torch.nn import functional

from weightnoise import devices, laws
from weightnoise._errors import SpecError
from weightnoise._select.patterns import listed
from weightnoise.laws import ActivationLaw, Chain, Noise

CLASS = "class:"
NAMES = frozenset({"type", "_target_"})  # Under one of these is the name of a law.
LAWS = {name: law for name in laws.__all__ if is_dataclass(law := getattr(laws, name))}
_DEVICES = "devices."


class Reader:
    """Plain data to laws: names are looked up, and what they name is looked at, before anything is called."""

    def __init__(self, allowed: tuple[Any, ...]) -> None:
        self._allowed = allowed

    def value(self, value: Any) -> Any:
        """Check that an object may stand in a spec."""
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if not isinstance(value, dict):
            if _is_number_as_text(value):
                raise SpecError(f"The law of a configuration is {value!r}:{_TEXT.format(text=value)}")
            return value
        if len(NAMES & value.keys()) == 2:
            raise SpecError(f"{value!r} has its name twice: leave 'type' or '_target_' out.")
        law = self._law(value.get("type", value.get("_target_")))
        options = {name: self._option(item) for name, item in value.items() if name not in NAMES}
        try:
            return law(**options)
        except (TypeError, ValueError) as error:
            text = next((one for one in options.values() if _is_number_as_text(one)), None)
            raise SpecError(f"{value!r}: {error}{'' if text is None else _TEXT.format(text=text)}") from None

    def key(self, key: Any) -> Any:
        """A pattern, or the class that it names."""
        if not isinstance(key, str) or not key.startswith(CLASS):
            return key
        name = key.removeprefix(CLASS)
        found = named(name)
        if found is None:
            raise SpecError(_UNKNOWN.format(name=name, kind="class"))
        if not isinstance(found, type) or not issubclass(found, nn.Module):
            raise SpecError(f"{key!r} is no module class.")
        return found

    def _option(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self._function(value["function"]) if "function" in value else self.value(value)
        if isinstance(value, list):
            # A tuple of numbers or names or of such tuples, or a list of laws, as in Protect(Chain(...)).
            numbers = _as_numbers(value)
            return Chain(tuple(map(self.value, value))) if numbers is _NO_NUMBERS else numbers
        return value

    def _law(self, name: Any) -> Any:
        if isinstance(name, str) and name in LAWS:
            return LAWS[name]
        device = name.removeprefix("weightnoise.").removeprefix(_DEVICES) if isinstance(name, str) else ""
        if device in devices.__all__:
            return partial(replace, getattr(devices, device))
        if not isinstance(name, str) or not _parted(name)[0]:
            every = f" The laws are {', '.join(LAWS)}."
            raise SpecError(f"{name!r} names no law.{_closest(name) or every}")
        found = named(name)
        if found is None:
            raise SpecError(_UNKNOWN.format(name=name, kind="law") + _closest(name))
        law = isinstance(found, type) and issubclass(found, (Noise, ActivationLaw))
        if not law or not (is_dataclass(found) or self._may(found)):
            raise SpecError(
                f"{name!r} is no law: nothing was called. A law is a class with the methods draw and apply; one "
                "that is no dataclass has to be allowed: spec_from_config(config, allow=[...])."
            )
        return found

    def _function(self, name: Any) -> Any:
        found = named(name) if isinstance(name, str) else None
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


def _closest(name: Any) -> str:
    """The names of the library that a name may have been meant for."""
    last = name.rpartition(".")[2] if isinstance(name, str) else ""
    close = get_close_matches(last, [*LAWS, *devices.__all__])
    return f" Closest names: {listed(close)}." if close else ""


_TEXT = " {text!r} is text: write it without quotes, and in YAML with a point, as in 1.0e-3."


def _is_number_as_text(value: Any) -> bool:
    """Whether it is text that reads as a number, for which YAML takes 1e-3."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


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


def named(name: str) -> Any:
    """The thing of that name in a module that is imported already; no code runs for the look."""
    parts = name.replace(":", ".").split(".")
    for end in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:end]))
        if found is not None:
            for part in parts[end:]:
                found = getattr(found, "__dict__", {}).get(part)
            return found
    return None
