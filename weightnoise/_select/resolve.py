"""From a spec and a model to the parameters that get noise. Looks at everything, touches nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from weightnoise._attach.per_example import estimator_problem
from weightnoise._checks import check_model, plain_number
from weightnoise._errors import (
    AlreadyNoisyError,
    LeftCleanWarning,
    NoMatchError,
    OptionTypeError,
    SpecError,
    TiedParameterError,
    UnsupportedParameterError,
    WeightNoiseError,
    raise_problems,
)
from weightnoise._noise.drawing import Memory
from weightnoise._noise.weight_noise import Estimator
from weightnoise._select.axis import batch_dims
from weightnoise._select.candidates import Candidate, common_layout, find_candidates
from weightnoise._select.choose import Spec, choose
from weightnoise._select.patterns import Key, label, listed
from weightnoise._torch.layers import Layout
from weightnoise._torch.modules import distributed_wrapper, flattened
from weightnoise.laws import Law as FullLaw
from weightnoise.laws import Noise
from weightnoise.laws._complete import complete


@dataclass(frozen=True, eq=False)
class Placement:
    """A tensor of the model and the law that goes on it."""

    candidate: Candidate
    law: Noise
    tied_with: tuple[str, ...] = ()
    batch_dim: int = 0
    padding_row: int | None = None
    layout: Layout | None = None  # One for all uses with this law, so that sums are rounded alike.

    @property
    def handed(self) -> FullLaw:
        """The law, kept from editing the tensor."""
        return _handed(self.law, self.candidate, self.tied_with)


def _handed(law: Noise, candidate: Candidate, tied_with: Sequence[str] = ()) -> FullLaw:
    whole = complete(law, f"parameter '{candidate.name}'")
    return whole.named((*candidate.names, *tied_with)).laid_out(candidate.layout)


def resolve(
    model: nn.Module,
    spec: Spec,
    min_ndim: int,
    estimator: Estimator = "shared",
    batch_dim: int | None = None,
    memory: Memory = "keep",
) -> list[Placement]:
    """The placements that ``spec`` chooses in ``model``, in parameter order.

    Raises:
        TypeError: if ``model`` is no module or ``min_ndim`` no whole number.
        WeightNoiseError: with every problem that was found.
    """
    check_model(model)
    min_ndim, batch_dim = plain_number(min_ndim), plain_number(batch_dim)
    if isinstance(min_ndim, bool) or not isinstance(min_ndim, int) or min_ndim < 0:
        raise OptionTypeError(f"min_ndim must be a whole number >= 0, got {min_ndim!r}.")
    if batch_dim is not None and (isinstance(batch_dim, bool) or not isinstance(batch_dim, int) or batch_dim < 0):
        raise OptionTypeError(f"batch_dim must be a whole number >= 0 or None, got {batch_dim!r}.")
    candidates = find_candidates(model)
    problems: list[WeightNoiseError] = []
    passed: list[Candidate] = []

    def covers(candidate: Candidate, _: Key | None) -> bool:
        if candidate.ndim < min_ndim <= candidate.tensor.ndim and candidate.may_be_matrix:
            passed.append(candidate)
        return candidate.ndim >= min_ndim

    chosen = choose(
        candidates,
        spec,
        problems,
        noun="parameter",
        ask=lambda function, candidate: function(candidate.name, candidate.tensor, candidate.owner),
        covers=covers,
        uncovered=lambda key, won: _too_few_dimensions(key, won, min_ndim),
    )
    problems += _placement_problems(candidates, chosen, estimator, memory)
    problems += _learned_too_late(model, chosen) + _flattened(model, chosen or candidates)
    if not chosen and not problems:
        problems.append(_nothing_covered(candidates, min_ndim))
    raise_problems(problems)
    if passed:
        warnings.warn(_PASSED.format(names=listed([one.name for one in passed])), LeftCleanWarning, stacklevel=3)
    tied = _by_source(candidates)
    placed = [candidate for candidate in candidates if candidate in chosen]
    dims = batch_dims(model, placed, batch_dim) if estimator == "flipout" else [0] * len(placed)
    return [
        Placement(
            candidate,
            chosen[candidate],
            _others(candidate, tied),
            dim,
            _padding_row(candidate, tied),
            common_layout(_alike(candidate, tied, chosen)),
        )
        for candidate, dim in zip(placed, dims, strict=True)
    ]


def _placement_problems(
    candidates: Sequence[Candidate], chosen: Mapping[Candidate, Noise], estimator: Estimator, memory: Memory
) -> list[WeightNoiseError]:
    problems: list[WeightNoiseError] = []
    tied = _by_source(candidates)
    for candidate, law in chosen.items():
        handed = _handed(law, candidate, _others(candidate, tied))
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
        and _handed(law, candidate, names) != _handed(law, other, names)
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


def _learned_too_late(model: nn.Module, chosen: Mapping[Candidate, Noise]) -> list[WeightNoiseError]:
    wrapper = distributed_wrapper(model)
    if not wrapper:
        return []
    learned = [
        candidate.name for candidate, law in chosen.items() if _handed(law, candidate).strengths(candidate.tensor)
    ]
    if not learned:
        return []
    return [
        UnsupportedParameterError(
            f"The strengths learned on {listed(learned)} would not be synchronised: {wrapper} has "
            "listed its Parameters already. Add the noise before the model is wrapped."
        )
    ]


def _flattened(model: nn.Module, covered: Iterable[Candidate]) -> list[WeightNoiseError]:
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


def _by_source(candidates: Sequence[Candidate]) -> dict[int, list[Candidate]]:
    """The uses of each tensor."""
    found: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        found.setdefault(id(candidate.source), []).append(candidate)
    return found


def _others(candidate: Candidate, tied: Mapping[int, Sequence[Candidate]]) -> tuple[str, ...]:
    return tuple(other.name for other in tied[id(candidate.source)] if other is not candidate)


def _alike(
    candidate: Candidate, tied: Mapping[int, Sequence[Candidate]], chosen: Mapping[Candidate, Noise]
) -> list[Candidate]:
    return [use for use in tied[id(candidate.source)] if repr(chosen.get(use)) == repr(chosen[candidate])]


def _padding_row(candidate: Candidate, tied: Mapping[int, Sequence[Candidate]]) -> int | None:
    """The row of a padding token: a draw is one weight for all uses, so it is clean in a tied head as well."""
    rows = (one.padding_row for one in (candidate, *tied[id(candidate.source)]))
    return next((row for row in rows if row is not None), None)


def _too_few_dimensions(key: Key, won: Sequence[Candidate], min_ndim: int) -> NoMatchError:
    return NoMatchError(
        f"{label(key)} covers only parameters with fewer than min_ndim={min_ndim} dimensions"
        f"{_COUNTED * any(one.tensor.ndim != one.ndim for one in won)}: "
        f"{listed(candidate.name for candidate in won[:3])}. "
        "Name a parameter exactly, or pass a smaller min_ndim."
    )


def _nothing_covered(candidates: Sequence[Candidate], min_ndim: int) -> NoMatchError:
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

_PASSED = (
    "The spec leaves clean what has at most one dimension longer than 1, as scales and shifts have, but these may "
    "be the weights of a product with one output or input: {names}. Name each exactly in a mapping, before other "
    "keys: with its law, or with None to leave it clean and be told no more."
)
