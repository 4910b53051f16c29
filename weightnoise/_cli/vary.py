"""Laws as functions of a level: an option of a law, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from weightnoise._cli.load import is_reference, load_function
from weightnoise._cli.notation import read_spec
from weightnoise._cli.terminal import CommandError
from weightnoise._robustness.plan import is_function, law_name
from weightnoise._select.patterns import listed
from weightnoise.laws._law import is_law
from weightnoise.laws._spec import as_law


def read_laws(texts: Sequence[str], allowed: Sequence[Any], option: str | None) -> dict[str, Any]:
    """The laws that ``--law`` names, by name; functions of the level where ``--vary`` names an option.

    Raises:
        CommandError: for what cannot be read, a law that is given twice, and an option that no law has.
    """
    if option is not None and not texts:
        raise CommandError(f"--vary {option} needs a law that has it: give --law")
    laws: dict[str, Any] = {}
    for text in texts:
        law = load_function(text) if is_reference(text) else read_spec(text, allowed)
        if law_name(law) in laws:
            raise CommandError(f"--law {law_name(law)} is given twice")
        laws[law_name(law)] = law if option is None else _varied(law, option)
    return laws


def check_factors(levels: Sequence[Any], laws: Mapping[str, Any]) -> None:
    """Refuse levels that are no factors, where they are factors."""
    wrong = [
        level
        for level in (one[1] if isinstance(one, tuple) else one for one in levels)
        if type(level) not in (int, float) or level < 0
    ]
    if wrong and not all(map(is_function, laws.values() or [None])):
        raise CommandError(
            f"--levels multiply the strength of a law and must be numbers of at least 0, not {wrong[0]!r}; for "
            "other values of an option of the law, name it: --vary OPTION"
        )


def _varied(law: Any, option: str) -> Callable[[Any], Any]:
    """The law with a level in the place of an option, in each part of it that has this option."""
    if is_function(law):
        raise CommandError(f"--vary {option} is for laws, and {law_name(law)} is a function of the level itself")
    spec = {key: as_law(one) for key, one in law.items()} if isinstance(law, Mapping) else as_law(law)
    known = set(_options(spec))
    if option not in known:
        raise CommandError(f"--vary {option}: {law_name(law)} has no such option, but {listed(sorted(known))}")

    def at(level: Any) -> Any:
        return _changed(spec, option, level)

    at.__name__ = law_name(law)
    return at


def _inside(spec: Any) -> list[Any]:
    """What laws may be in: the values of a mapping, the items of a tuple, the options of a law."""
    if isinstance(spec, Mapping):
        return list(spec.values())
    if isinstance(spec, tuple):
        return list(spec)
    return [getattr(spec, one.name) for one in fields(spec)] if _is_plain_law(spec) else []


def _is_plain_law(spec: Any) -> bool:
    return is_dataclass(spec) and not isinstance(spec, type) and is_law(spec)


def _options(spec: Any) -> Iterator[str]:
    """The names of all options of all laws of a spec."""
    if _is_plain_law(spec):
        yield from (one.name for one in fields(spec) if one.init)
    for one in _inside(spec):
        yield from _options(one)


def _changed(spec: Any, option: str, level: Any) -> Any:
    if isinstance(spec, Mapping):
        return {key: _changed(one, option, level) for key, one in spec.items()}
    if isinstance(spec, tuple):
        return tuple(_changed(one, option, level) for one in spec)
    if not _is_plain_law(spec):
        return spec
    before = {one.name: getattr(spec, one.name) for one in fields(spec) if one.init}
    after = {name: level if name == option else _changed(one, option, level) for name, one in before.items()}
    return replace(spec, **{name: one for name, one in after.items() if one is not before[name]})
