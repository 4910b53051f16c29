"""Which laws a spec puts on what: one chooser, for parameters and for modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from weightnoise._errors import NoMatchError, SpecError, WeightNoiseError
from weightnoise._select.patterns import Key, NamedT, label, won_by
from weightnoise.laws import ActivationLaw, Noise
from weightnoise.laws._law import is_law
from weightnoise.laws._spec import as_law

Single: TypeAlias = Noise | ActivationLaw | float
Law: TypeAlias = Single | Sequence[Single]
Spec: TypeAlias = Law | Mapping[Key, Law | None] | Callable[[str, Tensor, nn.Module], Law | None]


def choose(
    items: Sequence[NamedT],
    spec: Any,
    problems: list[WeightNoiseError],
    *,
    noun: str,
    ask: Callable[[Callable[..., Any], NamedT], Any],
    covers: Callable[[NamedT, Key | None], bool],
    uncovered: Callable[[Key, Sequence[NamedT]], NoMatchError],
) -> dict[NamedT, Noise]:
    """The law for each item that the spec covers; whatever is wrong adds to ``problems``.

    Args:
        items: all parameters, or all modules.
        spec: a law, a mapping from keys to laws, or a function.
        problems: where errors go.
        noun: what an item is, for errors.
        ask: calls a function of the user for an item.
        covers: whether an item is meant by a key that does not name it exactly, or by a bare law (None).
        uncovered: the error for a key that wins items and covers none of them.
    """
    if isinstance(spec, Mapping):
        return _by_mapping(items, spec, problems, noun, covers, uncovered)
    if callable(spec) and not (is_law(spec) or isinstance(spec, (type, nn.Module))):
        asked = {item: law_or_problem(ask(spec, item), problems, item.names[0]) for item in items}
        return {item: law for item, law in asked.items() if law is not None}
    law = law_or_problem(spec, problems)
    if spec is None:
        problems.append(SpecError("The spec is None. Give a number, a law, a list, a mapping or a callable."))
    return {} if law is None else {item: law for item in items if covers(item, None)}


def _by_mapping(
    items: Sequence[NamedT],
    spec: Mapping[Key, Any],
    problems: list[WeightNoiseError],
    noun: str,
    covers: Callable[[NamedT, Key | None], bool],
    uncovered: Callable[[Key, Sequence[NamedT]], NoMatchError],
) -> dict[NamedT, Noise]:
    if not spec:
        problems.append(SpecError("The mapping is empty. Give it a pattern and a law: {'*': 0.01}."))
    laws = {key: law_or_problem(value, problems, label(key)) for key, value in spec.items()}
    chosen: dict[NamedT, Noise] = {}
    for key, won in won_by(spec, items, noun, problems).items():
        law = laws[key]
        if law is None:
            continue
        covered = [item for item in won if key in item.names or covers(item, key)]
        chosen |= dict.fromkeys(covered, law)
        if won and not covered:
            problems.append(uncovered(key, won))
    return chosen


def law_or_problem(value: object, problems: list[WeightNoiseError], where: str | None = None) -> Noise | None:
    """The law that a value of a spec stands for; what is none adds to ``problems``."""
    try:
        return as_law(value)
    except SpecError as error:
        problems.append(error if where is None else SpecError(f"{where}: {error}"))
        return None
