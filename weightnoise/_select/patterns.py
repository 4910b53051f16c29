"""Which parameters and modules the keys of a mapping choose, and what to say when they choose none."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias, TypeVar

from torch import nn

from weightnoise._errors import NoMatchError, SpecError, WeightNoiseError
from weightnoise._torch.modules import MOST_NAMES

Key: TypeAlias = str | type[nn.Module]

_WILD = re.compile(r"[*?[]")
_COMPARED = 10_000  # Names with a mistaken one, which takes long.


class Named(Protocol):
    """A parameter or a module: its full clean names, and the module whose class counts."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every full clean name, or the first `MOST_NAMES`."""

    @property
    def owner(self) -> nn.Module:
        """The module."""


NamedT = TypeVar("NamedT", bound=Named)


def won_by(
    keys: Iterable[Key], items: Sequence[NamedT], noun: str, problems: list[WeightNoiseError]
) -> dict[Key, list[NamedT]]:
    """Give each item to the first key that matches it.

    Keys that are none, match nothing or win nothing add to ``problems``.
    """
    by_name = _by_name(items)
    matched = {key: _matched(key, items, by_name) for key in keys if is_key(key, problems)}
    winner: dict[int, Key] = {}
    for key, found in matched.items():
        for item in found:
            winner.setdefault(id(item), key)
    won = {key: [item for item in found if winner[id(item)] is key] for key, found in matched.items()}
    for key, found in matched.items():
        if not found:
            problems.append(no_match(key, items, noun))
        elif not won[key]:
            problems.append(_shadowed(key, winner[id(found[0])]))
    problems += _too_many_names(matched, items)
    return won


def _too_many_names(matched: Mapping[Key, Sequence[NamedT]], items: Sequence[NamedT]) -> list[NoMatchError]:
    """An error for each pattern that may fit a name which is not among those that are looked at."""
    unsure: dict[str, str] = {}
    for item in items:
        if len(item.names) < MOST_NAMES:
            continue
        for key, found in matched.items():
            if any(other is item for other in found):
                break
            if isinstance(key, str):
                unsure.setdefault(key, item.names[0])
    return [
        NoMatchError(
            f"{label(key)} fits none of the first {MOST_NAMES} names of '{name}', which has more, as what is "
            "shared within shared modules has. Choose by a class, a function, or a pattern that fits one of these."
        )
        for key, name in unsure.items()
    ]


def is_key(key: object, problems: list[WeightNoiseError]) -> bool:
    """Whether ``key`` is a pattern or a module class; if not, add to ``problems``."""
    if isinstance(key, str) or (isinstance(key, type) and issubclass(key, nn.Module)):
        return True
    problems.append(SpecError(f"Key {key!r} must be a pattern of names (str) or a module class."))
    return False


def _by_name(items: Iterable[NamedT]) -> dict[str, NamedT]:
    return {name: item for item in items for name in item.names}


def _matched(key: Key, items: Sequence[NamedT], by_name: Mapping[str, NamedT]) -> list[NamedT]:
    if isinstance(key, type) or _WILD.search(key):
        return [item for item in items if matches(key, item)]
    return [by_name[key]] if key in by_name else []  # A thousand exact names do not look at every parameter.


def matches(key: Key, item: Named) -> bool:
    """Whether ``key`` is the class of the item's module, one of its names, or a glob on one."""
    if isinstance(key, type):
        return isinstance(item.owner, key)
    return any(matches_name(key, name) for name in item.names)


def matches_name(key: str, name: str) -> bool:
    """Whether a pattern fits a name; the name "" of the model itself is fit by itself alone."""
    return key == name or (name != "" and fnmatch.fnmatchcase(name, key))


def label(key: object) -> str:
    """The key, in a sentence."""
    return f"Class {key.__name__}" if isinstance(key, type) else f"Pattern {key!r}"


def listed(names: Iterable[str]) -> str:
    """Names, in a sentence."""
    return ", ".join(map(repr, names))


def no_match(key: Key, items: Collection[Named], noun: str) -> NoMatchError:
    """The error for a key that matches nothing, with the closest names."""
    if isinstance(key, type):
        classes = sorted({type(item.owner).__name__.removeprefix("Parametrized") for item in items})
        if noun == "parameter":
            return NoMatchError(
                f"{label(key)} owns no parameter of the model. Classes that do: {', '.join(classes)}."
            )
        return NoMatchError(f"{label(key)} matches no module. Classes in the model: {', '.join(classes)}.")
    names = [name for item in items for name in item.names if name][:_COMPARED]
    closest = _closest(key, names) or difflib.get_close_matches(key, names, n=3, cutoff=0.4) or names[:3]
    nothing = f"none, the model has no {noun}s" + (" but itself, ''" if noun == "module" else "")
    return NoMatchError(f"{label(key)} matches no {noun}. Closest names: {listed(closest) or nothing}.")


def _closest(pattern: str, names: Sequence[str]) -> list[str]:
    """Names with a part like the part of a pattern with wildcards that is in none: attention, for ``*attn*``."""
    if not _WILD.search(pattern):
        return []
    parts = {part: name for name in reversed(names) for part in name.split(".")}
    for written in filter(None, re.split(r"[*?.\[\]]+", pattern)):
        if not any(written in part for part in parts):
            like = difflib.get_close_matches(written, parts, n=3, cutoff=0.5)
            return [name for name in names if not set(like).isdisjoint(name.split("."))][:3]
    return []


def _shadowed(key: Key, first: Key) -> NoMatchError:
    wins = repr(first) if isinstance(first, str) else label(first)
    return NoMatchError(
        f"{label(key)} can never apply: {wins} comes first and wins it. Put the more specific pattern first."
    )
