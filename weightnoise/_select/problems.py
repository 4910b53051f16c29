"""Whatever keeps noise off a tensor: tied uses covered in part, noise that is there, laws that do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from weightnoise._attach.per_example import estimator_problem
from weightnoise._errors import (
    AlreadyNoisyError,
    NoMatchError,
    SpecError,
    TiedParameterError,
    UnsupportedParameterError,
    WeightNoiseError,
)
from weightnoise._noise.drawing import Memory
from weightnoise._noise.weight_noise import Estimator
from weightnoise._select.candidates import Candidate
from weightnoise._select.patterns import Key, label, listed
from weightnoise._torch.modules import distributed_wrapper, flattened
from weightnoise.laws import Law as FullLaw
from weightnoise.laws import Noise
from weightnoise.laws._complete import complete


def law_for(law: Noise, candidate: Candidate, tied_with: Sequence[str] = ()) -> FullLaw:
    """The law as it goes on a tensor, kept from editing it."""
    whole = complete(law, f"parameter '{candidate.name}'")
    return whole.named((*candidate.names, *tied_with)).laid_out(candidate.layout)


def by_source(candidates: Sequence[Candidate]) -> dict[int, list[Candidate]]:
    """The uses of each tensor."""
    found: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        found.setdefault(id(candidate.source), []).append(candidate)
    return found


def others(candidate: Candidate, tied: Mapping[int, Sequence[Candidate]]) -> tuple[str, ...]:
    """The names of the other uses of a tensor."""
    return tuple(other.name for other in tied[id(candidate.source)] if other is not candidate)


def placement_problems(
    candidates: Sequence[Candidate], chosen: Mapping[Candidate, Noise], estimator: Estimator, memory: Memory
) -> list[WeightNoiseError]:
    problems: list[WeightNoiseError] = []
    tied = by_source(candidates)
    for candidate, law in chosen.items():
        handed = law_for(law, candidate, others(candidate, tied))
        if candidate.noise is not None:
            problems.append(
                AlreadyNoisyError(
                    f"Parameter '{candidate.name}' already has weight noise {candidate.noise.law!r}. "
                    "Call remove_weight_noise(model) first."
                )
            )
        elif handed.says("at"):
            problems.append(
                SpecError(
                    f"{law!r} is for activations, not for parameter '{candidate.name}'. See add_activation_noise."
                )
            )
        elif reason := candidate.unsupported(estimator, memory):
            problems.append(UnsupportedParameterError(f"Parameter '{candidate.name}' {reason}"))
        elif reason := handed.problem(candidate.tensor):
            problems.append(
                UnsupportedParameterError(f"{law!r} does not fit parameter '{candidate.name}': {reason}.")
            )
        elif reason := estimator_problem(
            estimator, candidate.owner, candidate.tensor_name, handed, candidate.tensor
        ):
            problems.append(UnsupportedParameterError(f"Parameter '{candidate.name}' {reason}."))
        problems += _tied_problems(candidate, law, tied[id(candidate.source)], chosen)
    return problems


def _tied_problems(
    candidate: Candidate, law: Noise, uses: Sequence[Candidate], chosen: Mapping[Candidate, Noise]
) -> list[WeightNoiseError]:
    names = [name for use in uses for name in use.names]
    problems: list[WeightNoiseError] = [
        TiedParameterError(
            f"{law!r} means other parts of '{candidate.name}' than of '{other.name}', which is tied to it and "
            "is read by another kind of layer. Give the dimension, which is the same for both: per=0, say."
        )
        for other in uses
        if candidate.layout != other.layout
        and complete(law).named(names).problem(candidate.tensor)  # Else it says the same of any layout.
        and law_for(law, candidate, names) != law_for(law, other, names)
    ]
    problems += [
        TiedParameterError(
            f"Parameter '{candidate.name}' is tied to '{other.name}', but the spec covers only "
            f"'{candidate.name}'. Cover both, or leave both clean with None."
        )
        for other in uses
        if other not in chosen
    ]
    return problems


def learned_too_late(model: nn.Module, chosen: Mapping[Candidate, Noise]) -> list[WeightNoiseError]:
    wrapper = distributed_wrapper(model)
    if not wrapper:
        return []
    learned = [
        candidate.name for candidate, law in chosen.items() if law_for(law, candidate).strengths(candidate.tensor)
    ]
    if not learned:
        return []
    return [
        UnsupportedParameterError(
            f"The strengths learned on {listed(learned)} would not be synchronised: {wrapper} has "
            "listed its Parameters already. Add the noise before the model is wrapped."
        )
    ]


def flattened_problems(model: nn.Module, covered: Iterable[Candidate]) -> list[WeightNoiseError]:
    flat = flattened(model)
    names = [candidate.name for candidate in covered if candidate.owner in flat] if flat else []
    if not names:
        return []
    return [
        UnsupportedParameterError(
            f"FullyShardedDataParallel keeps {listed(names)} in one flat tensor, whose noise the layers would not "
            "see. Use fully_shard or DistributedDataParallel, which leave the weights to their modules."
        )
    ]


def too_few_dimensions(key: Key, won: Sequence[Candidate], min_ndim: int) -> NoMatchError:
    return NoMatchError(
        f"{label(key)} covers only parameters with fewer than min_ndim={min_ndim} dimensions"
        f"{_COUNTED * any(one.tensor.ndim != one.ndim for one in won)}: "
        f"{listed(candidate.name for candidate in won[:3])}. "
        "Name a parameter exactly, or pass a smaller min_ndim."
    )


def nothing_covered(candidates: Sequence[Candidate], min_ndim: int) -> NoMatchError:
    if not candidates:
        return NoMatchError("The model has no parameters to put noise on.")
    largest = max(candidate.ndim for candidate in candidates)
    counted = _COUNTED * any(one.tensor.ndim != one.ndim for one in candidates)
    return NoMatchError(
        f"The spec puts noise on none of the model's {len(candidates)} parameters. A law or a number covers "
        f"floating-point parameters with at least min_ndim={min_ndim} dimensions{counted}; the most here "
        f"is {largest}."
    )


_COUNTED = ", where one counts for scales and shifts of any shape,"
