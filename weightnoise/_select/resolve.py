"""From a spec and a model to the parameters that get noise. Looks at everything, touches nothing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from weightnoise._checks import check_model, plain_number
from weightnoise._errors import LeftCleanWarning, OptionTypeError, WeightNoiseError, raise_problems
from weightnoise._noise.drawing import Memory
from weightnoise._noise.weight_noise import Estimator
from weightnoise._select.axis import batch_dims
from weightnoise._select.candidates import Candidate, common_layout, find_candidates
from weightnoise._select.choose import Spec, choose
from weightnoise._select.patterns import Key, listed
from weightnoise._select.problems import (
    by_source,
    flattened_problems,
    law_for,
    learned_too_late,
    nothing_covered,
    others,
    placement_problems,
    too_few_dimensions,
)
from weightnoise._torch.layers import Layout
from weightnoise.laws import Law as FullLaw
from weightnoise.laws import Noise


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
        return law_for(self.law, self.candidate, self.tied_with)


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
        uncovered=lambda key, won: too_few_dimensions(key, won, min_ndim),
    )
    problems += placement_problems(candidates, chosen, estimator, memory)
    problems += learned_too_late(model, chosen) + flattened_problems(model, chosen or candidates)
    if not chosen and not problems:
        problems.append(nothing_covered(candidates, min_ndim))
    raise_problems(problems)
    if passed:
        warnings.warn(_PASSED.format(names=listed([one.name for one in passed])), LeftCleanWarning, stacklevel=3)
    tied = by_source(candidates)
    placed = [candidate for candidate in candidates if candidate in chosen]
    dims = batch_dims(model, placed, batch_dim) if estimator == "flipout" else [0] * len(placed)
    return [
        Placement(
            candidate,
            chosen[candidate],
            others(candidate, tied),
            dim,
            _padding_row(candidate, tied),
            common_layout(_alike(candidate, tied, chosen)),
        )
        for candidate, dim in zip(placed, dims, strict=True)
    ]


def _alike(
    candidate: Candidate, tied: Mapping[int, Sequence[Candidate]], chosen: Mapping[Candidate, Noise]
) -> list[Candidate]:
    return [use for use in tied[id(candidate.source)] if repr(chosen.get(use)) == repr(chosen[candidate])]


def _padding_row(candidate: Candidate, tied: Mapping[int, Sequence[Candidate]]) -> int | None:
    """The row of a padding token: a draw is one weight for all uses, so it is clean in a tied head as well."""
    rows = (one.padding_row for one in (candidate, *tied[id(candidate.source)]))
    return next((row for row in rows if row is not None), None)


_PASSED = (
    "The spec leaves clean what has at most one dimension longer than 1, as scales and shifts have, but these may "
    "be the weights of a product with one output or input: {names}. Name each exactly in a mapping, before other "
    "keys: with its law, or with None to leave it clean and be told no more."
)
