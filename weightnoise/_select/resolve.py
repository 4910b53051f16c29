"""From a spec and a model to the parameters that get noise. Looks at everything, touches nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from weightnoise._attach.per_example import estimator_problem
from weightnoise._errors import (
    AlreadyNoisyError,
    NoMatchError,
    SpecError,
    TiedParameterError,
    UnsupportedParameterError,
    WeightNoiseError,
    raise_problems,
)
from weightnoise._noise.weight_noise import Estimator
from weightnoise._select.candidates import Slot, find_slots
from weightnoise._select.patterns import Key, choose, label, listed
from weightnoise._torch.modules import distributed_wrapper
from weightnoise.laws import ActivationLaw, Noise, as_law, guarded, is_for_activations, problem_of, strengths_of

Single: TypeAlias = Noise | ActivationLaw | float
Law: TypeAlias = Single | Sequence[Single]
Spec: TypeAlias = Law | Mapping[Key, Law | None] | Callable[[str, Tensor, nn.Module], Law | None]


@dataclass(frozen=True, eq=False)
class Site:
    """A tensor of the model and the law that goes on it."""

    slot: Slot
    law: Noise
    tied_with: tuple[str, ...] = ()

    @property
    def handed(self) -> Noise:
        """The law, kept from editing the tensor."""
        return handed(self.law, self.slot)


def handed(law: Noise, slot: Slot) -> Noise:
    """The law, kept from editing the tensor of the slot."""
    safe: Noise = guarded(law, f"parameter '{slot.name}'")
    return safe


def resolve(model: nn.Module, spec: Spec, min_ndim: int, estimator: Estimator = "shared") -> list[Site]:
    """The sites that ``spec`` chooses in ``model``, in parameter order.

    Raises:
        TypeError: if ``model`` is no module or ``min_ndim`` no whole number.
        WeightNoiseError: with every problem that was found.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if isinstance(min_ndim, bool) or not isinstance(min_ndim, int) or min_ndim < 0:
        raise TypeError(f"min_ndim must be a whole number >= 0, got {min_ndim!r}.")
    slots = find_slots(model)
    problems: list[WeightNoiseError] = []
    chosen = _choose(slots, spec, min_ndim, problems)
    problems += _site_problems(slots, chosen, estimator)
    problems += _learned_too_late(model, chosen)
    if not chosen and not problems:
        problems.append(_nothing_covered(slots, min_ndim))
    raise_problems(problems)
    tied = _by_source(slots)
    return [Site(slot, chosen[slot], _others(slot, tied)) for slot in slots if slot in chosen]


def _choose(
    slots: Sequence[Slot], spec: Spec, min_ndim: int, problems: list[WeightNoiseError]
) -> dict[Slot, Noise]:
    if isinstance(spec, Mapping):
        return _choose_by_mapping(slots, spec, min_ndim, problems)
    if callable(spec) and not isinstance(spec, (Noise, type)):
        laws = {
            slot: law_or_problem(spec(slot.name, slot.tensor, slot.owner), problems, slot.name) for slot in slots
        }
        return {slot: law for slot, law in laws.items() if law is not None}
    law = law_or_problem(spec, problems)
    if law is None:
        problems.append(SpecError("The spec is None. Give a number, a law, a list, a mapping or a callable."))
        return {}
    return {slot: law for slot in slots if slot.ndim >= min_ndim}


def _choose_by_mapping(
    slots: Sequence[Slot], spec: Mapping[Key, Any], min_ndim: int, problems: list[WeightNoiseError]
) -> dict[Slot, Noise]:
    if not spec:
        problems.append(SpecError("The mapping is empty. Give it a pattern and a law: {'*': 0.01}."))
    laws = {key: law_or_problem(value, problems, label(key)) for key, value in spec.items()}
    chosen: dict[Slot, Noise] = {}
    for key, won in choose(spec, slots, "parameter", problems).items():
        law = laws[key]
        covered = [slot for slot in won if slot.ndim >= min_ndim or key in slot.names]
        if law is None:
            continue
        chosen |= dict.fromkeys(covered, law)
        if won and not covered:
            problems.append(_too_few_dimensions(key, won, min_ndim))
    return chosen


def law_or_problem(value: object, problems: list[WeightNoiseError], where: str | None = None) -> Noise | None:
    """The law that a value of a spec stands for; what is none adds to ``problems``."""
    try:
        return as_law(value)
    except SpecError as error:
        problems.append(error if where is None else SpecError(f"{where}: {error}"))
        return None


def _site_problems(
    slots: Sequence[Slot], chosen: Mapping[Slot, Noise], estimator: Estimator
) -> list[WeightNoiseError]:
    problems: list[WeightNoiseError] = []
    tied = _by_source(slots)
    for slot, law in chosen.items():
        if slot.noise is not None:
            problems.append(
                AlreadyNoisyError(
                    f"Parameter '{slot.name}' already has weight noise {slot.noise.law!r}. "
                    "Call remove_weight_noise(model) first."
                )
            )
        elif is_for_activations(law):
            problems.append(
                SpecError(
                    f"{law!r} is for activations, not for parameter '{slot.name}'. See add_activation_noise."
                )
            )
        elif reason := slot.unsupported():
            problems.append(UnsupportedParameterError(f"Parameter '{slot.name}' {reason}"))
        elif reason := problem_of(handed(law, slot), slot.tensor):
            problems.append(UnsupportedParameterError(f"{law!r} does not fit parameter '{slot.name}': {reason}."))
        elif reason := estimator_problem(estimator, slot.owner, slot.tensor_name, handed(law, slot), slot.tensor):
            problems.append(UnsupportedParameterError(f"Parameter '{slot.name}' {reason}."))
        problems += [
            TiedParameterError(
                f"Parameter '{slot.name}' is tied to '{other.name}', but the spec covers only "
                f"'{slot.name}'. Cover both, or leave both clean with None."
            )
            for other in tied[id(slot.source)]
            if other not in chosen
        ]
    return problems


def _learned_too_late(model: nn.Module, chosen: Mapping[Slot, Noise]) -> list[WeightNoiseError]:
    wrapper = distributed_wrapper(model)
    if not wrapper:
        return []
    learned = [slot.name for slot, law in chosen.items() if strengths_of(handed(law, slot), slot.tensor)]
    if not learned:
        return []
    return [
        UnsupportedParameterError(
            f"The strengths learned on {listed(learned)} would not be synchronised: {wrapper} has "
            "listed its Parameters already. Add the noise before the model is wrapped."
        )
    ]


def _by_source(slots: Sequence[Slot]) -> dict[int, list[Slot]]:
    """The uses of each tensor."""
    found: dict[int, list[Slot]] = {}
    for slot in slots:
        found.setdefault(id(slot.source), []).append(slot)
    return found


def _others(slot: Slot, tied: Mapping[int, Sequence[Slot]]) -> tuple[str, ...]:
    return tuple(other.name for other in tied[id(slot.source)] if other is not slot)


def _too_few_dimensions(key: Key, won: Sequence[Slot], min_ndim: int) -> NoMatchError:
    return NoMatchError(
        f"{label(key)} covers only parameters with fewer than min_ndim={min_ndim} dimensions: "
        f"{listed(slot.name for slot in won[:3])}. "
        "Name a parameter exactly, or pass a smaller min_ndim."
    )


def _nothing_covered(slots: Sequence[Slot], min_ndim: int) -> NoMatchError:
    if not slots:
        return NoMatchError("The model has no parameters to put noise on.")
    largest = max(slot.ndim for slot in slots)
    return NoMatchError(
        f"The spec puts noise on none of the model's {len(slots)} parameters. A law or a number covers "
        f"floating-point parameters with at least min_ndim={min_ndim} dimensions; the most here is {largest}."
    )
