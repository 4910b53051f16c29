"""What is evaluated: levels, laws, draws; checked, and named."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from weightnoise._attach.find import find_noise, noises
from weightnoise._checks import check_choice, check_count, check_seed, check_strength, plain_number
from weightnoise._errors import NotNoisyError, OptionError, OptionTypeError, SpecError
from weightnoise._holds import Reads
from weightnoise._robustness.measurements import Level
from weightnoise._robustness.metric import Metric
from weightnoise._select.choose import Spec
from weightnoise.laws._law import is_law

LevelLaw: TypeAlias = Spec | Callable[[Any], Spec]
Levels: TypeAlias = Iterable[Any]


@dataclass(frozen=True)
class Stop:
    """When a level has been measured precisely enough."""

    target: float
    relative: bool


@dataclass(frozen=True)
class Plan:
    """What is evaluated, apart from the model.

    Attributes:
        laws: by the name of a curve; None for the noise on the model.
        levels: the name of each, and what a law is multiplied by or a function called with.
        numbers: of the draws.
    """

    metric: Metric
    laws: Mapping[str, LevelLaw | None]
    levels: Sequence[tuple[Level, Any]]
    numbers: Sequence[int]
    seed: int
    antithetic: bool = False
    by_parameter: bool = False
    until: Stop | None = None
    vectorize: bool = False
    recalibrate: Any = None
    reads: Reads = "held"
    log: Callable[[str, float, int], object] | None = None


def make_plan(
    metric: Metric,
    levels: Levels,
    law: LevelLaw | None,
    laws: Mapping[str, LevelLaw] | None,
    draws: int | range,
    executor: Any = None,
    **options: Any,
) -> Plan:
    """Check the options of `evaluate_robustness`, and put them together."""
    named = _named(law, laws)
    if options["by_parameter"] and len(named) > 1:
        raise SpecError("evaluate_robustness(by_parameter=True) needs a single law: law=..., or one in laws=....")
    check_choice("evaluate_robustness", "reads", options.get("reads", "held"), ("held", "fresh"))
    fresh = None if options.get("reads", "held") == "held" else "fresh"
    for name, value in (("executor", executor), ("recalibrate", options.get("recalibrate")), ("reads", fresh)):
        if options.get("vectorize") and value is not None:
            raise OptionError(
                f"evaluate_robustness(vectorize=True) goes without {name}=...: leave one of them out."
            )
    if options.get("log") is not None and not callable(options["log"]):
        raise OptionTypeError(
            "evaluate_robustness(log=...) takes a function of name, value and step, such as the method "
            "add_scalar of a "
            f"SummaryWriter, got {type(options['log']).__name__}."
        )
    options["seed"] = check_seed("evaluate_robustness", options["seed"])
    if isinstance(levels, str) or not isinstance(levels, Iterable) or getattr(levels, "ndim", 1) == 0:
        raise OptionTypeError(f"evaluate_robustness(levels=...) must be a list of levels, got {levels!r}.")
    checked = tuple(_level(level, [one for one in named.values() if not is_function(one)]) for level in levels)
    if not checked:
        raise OptionError("evaluate_robustness(levels=...) must hold at least one level.")
    numbers = _numbers(draws, options["antithetic"])
    return Plan(metric, named, checked, numbers, until=_stop(options.pop("until_sem")), **options)


def _named(law: LevelLaw | None, laws: Mapping[str, LevelLaw] | None) -> dict[str, LevelLaw | None]:
    """The laws by the names of their curves."""
    if laws is None:
        return {"noise" if law is None else law_name(law): law}
    if law is not None:
        raise SpecError(
            "evaluate_robustness takes law=... for one curve or laws={name: law} for several, not both."
        )
    if not isinstance(laws, Mapping) or not laws or not all(isinstance(name, str) for name in laws):
        raise SpecError(f"evaluate_robustness(laws=...) must be a dict of laws by name, got {laws!r}.")
    return dict(laws)


def _level(level: Any, factors_on: Sequence[LevelLaw | None]) -> tuple[Level, Any]:
    """The name of a level and its value."""
    level = plain_number(level)
    if isinstance(level, (tuple, list)) and len(level) == 2 and isinstance(level[0], str):
        name, value = level[0], plain_number(level[1])
    else:
        name = value = level
    if factors_on:
        if isinstance(value, str):
            raise OptionError(
                f"evaluate_robustness(levels=...) are factors on the strength of a law, got {value!r}. Names "
                "are for "
                "law=function, which is called with them."
            )
        check_strength("evaluate_robustness", "levels", value)
    number = isinstance(name, (int, float)) and not isinstance(name, bool) and math.isfinite(name)
    if not (number or isinstance(name, str)):
        raise OptionError(
            f"evaluate_robustness(levels=...) must be finite numbers, names or pairs (name, value), got {level!r}."
        )
    return (name if isinstance(name, str) else float(name)), value


def _numbers(draws: int | range, antithetic: bool) -> range:
    if isinstance(draws, range):
        numbers = draws
        if not len(numbers) or numbers.step != 1 or numbers.start < 0:
            raise OptionError(
                f"evaluate_robustness(draws=...) must be a range of some numbers >= 0, got {draws!r}."
            )
    else:
        numbers = range(check_count("evaluate_robustness", "draws", draws, 1))
    if antithetic and (numbers.start % 2 or numbers.stop % 2):
        raise OptionError(
            f"evaluate_robustness(antithetic=True) makes draws in pairs: draws=... must be even, got {draws!r}."
        )
    return numbers


def _stop(until: float | str | None) -> Stop | None:
    if until is None:
        return None
    percent = re.fullmatch(r"\s*([0-9.eE+-]+)\s*%\s*", until) if isinstance(until, str) else None
    try:
        target: Any = until if percent is None else float(percent[1]) / 100
    except ValueError:
        target = until
    return Stop(check_strength("evaluate_robustness", "until_sem", target), percent is not None)


def is_function(law: Any) -> bool:
    """Whether it makes a spec from a level."""
    return callable(law) and not is_law(law) and not isinstance(law, (type, nn.Module))


def law_name(law: Any) -> str:
    """What a law is called, the same in each process."""
    if law is None:
        return "that of the model"
    if is_function(law):
        name = getattr(law, "__name__", "<lambda>")
        return "function of the level" if name == "<lambda>" else name
    return re.sub(r" at 0x[0-9a-f]+", "", repr(law))


def metric_name(metric: Any) -> str:
    """Where a metric is defined, or the class of one that is no function."""
    metric = getattr(metric, "func", metric)
    name = getattr(metric, "__qualname__", None)
    if name is not None and name.endswith("<lambda>"):  # There may be many of this name.
        name += f" of line {metric.__code__.co_firstlineno}"
    return f"{metric.__module__}.{name}" if name else f"{type(metric).__module__}.{type(metric).__qualname__}"


def check_shared(model: nn.Module) -> None:
    """Refuse noise that differs from example to example: no chip has it."""
    other = [name for name, _, noise in noises(model) if noise.estimator != "shared"]
    if other:
        raise SpecError(
            f"The noise on {', '.join(map(repr, other))} has an estimator with noise of its own for each "
            "example, which "
            "no chip has: what it measures is not the robustness of one. Call weightnoise.share_noise(model) "
            "first."
        )


def check_noisy(model: nn.Module) -> None:
    """Refuse a model without noise."""
    if not any(find_noise(model)):
        raise NotNoisyError(
            "The model carries no noise. Give evaluate_robustness a law=..., or call add_weight_noise(model, "
            "spec)."
        )
