"""The plan of a spec: its effect on a model, measured without touching it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightnoise._checks import check_choice
from weightnoise._noise.weight_noise import Estimator
from weightnoise._random import seeds as _seeds
from weightnoise._select.candidates import find_candidates
from weightnoise._select.choose import Spec
from weightnoise._select.resolve import Placement, resolve
from weightnoise.laws import Law, Noise, sample
from weightnoise.laws._complete import complete
from weightnoise.laws._regions import layout_note

_SEED = 0
_SAMPLES = 10_000  # An effective standard deviation is then known to about one per cent.


@dataclass(frozen=True)
class PlannedNoise:
    """One row of a `NoisePlan`.

    Attributes:
        name: the full clean name of the parameter.
        shape: its shape.
        law: the law that goes on it.
        effective_std: root mean square of the noise over the weights, in units of the weight,
            measured on seeded draws; None for a parameter without data (meta device).
        tied_with: other names of the same Parameter.
        batch_dim: the dimension of the examples in what the layer takes in, with ``estimator="flipout"``.
    """

    name: str
    shape: tuple[int, ...]
    law: Noise
    effective_std: float | None
    tied_with: tuple[str, ...]
    batch_dim: int | None = None


@dataclass(frozen=True)
class NoisePlan:
    """The effect that `add_weight_noise` would have. It prints as a table.

    Attributes:
        rows: the parameters that get noise, in parameter order.
        clean: the names of those that stay clean.
        scales: those of the clean ones that have ``min_ndim`` dimensions, but are scales, shifts or tokens: of
            a normalisation, or with at most one dimension longer than 1.
        notes: of layers that store inputs before outputs, which dimension ``per`` is there.
    """

    rows: tuple[PlannedNoise, ...]
    clean: tuple[str, ...]
    scales: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The table, one line a parameter, and what stays clean."""
        head: tuple[str, ...] = ("name", "shape", "law", "effective std", "tied with")
        body: list[tuple[str, ...]] = [
            (
                row.name,
                " x ".join(map(str, row.shape)) or "scalar",
                repr(row.law),
                "-" if row.effective_std is None else f"{row.effective_std:.3g}",
                ", ".join(row.tied_with) or "-",
            )
            for row in self.rows
        ]
        if any(row.batch_dim is not None for row in self.rows):
            head = (*head, "batch dim")
            body = [(*line, str(row.batch_dim)) for line, row in zip(body, self.rows, strict=True)]
        lines = table(head, body)
        total = len(self.rows) + len(self.clean)
        lines.append(f"{len(self.rows)} of {total} parameters noisy; clean: {few(self.clean) or 'none'}")
        if self.scales:
            lines.append(f"clean as scales, shifts or tokens (name them to cover them): {few(self.scales)}")
        return "\n".join([*lines, *self.notes])


def plan_weight_noise(
    model: nn.Module,
    spec: Spec,
    *,
    min_ndim: int = 2,
    estimator: Estimator = "shared",
    batch_dim: int | None = None,
) -> NoisePlan:
    """Tell what `add_weight_noise` with these arguments would do; the model stays as it is.

    Args:
        model: any module.
        spec: as for `add_weight_noise`.
        min_ndim: as for `add_weight_noise`.
        estimator: as for `add_weight_noise`.
        batch_dim: as for `add_weight_noise`.

    Returns:
        A plan that prints as a table: name, shape, law, effective standard deviation, tied names, and with
        ``estimator="flipout"`` the dimension of the examples.

    Raises:
        TypeError: if ``model`` is no module.
        WeightNoiseError: what `add_weight_noise` would raise.

    Example:
        >>> print(plan_weight_noise(nn.Linear(300, 100), 0.01))
        name    shape      law                 effective std  tied with
        ------  ---------  ------------------  -------------  ---------
        weight  100 x 300  Gaussian(std=0.01)  0.01           -
        1 of 2 parameters noisy; clean: bias
    """
    check_choice("plan_weight_noise", "estimator", estimator, ("shared", "flipout", "local"))
    placements = resolve(model, spec, min_ndim, estimator, batch_dim)
    noisy = {placement.candidate.name for placement in placements}
    clean = [candidate for candidate in find_candidates(model) if candidate.name not in noisy]
    scales = [one.name for one in clean if one.ndim < min_ndim <= one.tensor.ndim]
    rows = (
        PlannedNoise(
            placement.candidate.name,
            tuple(placement.candidate.tensor.shape),
            placement.law,
            effective_std(placement.handed, placement.candidate.tensor),
            placement.tied_with,
            placement.batch_dim if estimator == "flipout" else None,
        )
        for placement in placements
    )
    return NoisePlan(tuple(rows), tuple(one.name for one in clean), tuple(scales), _notes(placements))


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, its columns one below the other."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in (head, *body)]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def few(names: Sequence[str]) -> str:
    """The first of the names, in a sentence."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _notes(placements: Sequence[Placement]) -> tuple[str, ...]:
    found: dict[str, list[str]] = {}
    for placement in placements:
        laws = [complete(placement.law)]
        for law in laws:
            laws += law.inside
            if note := layout_note(law, placement.candidate.layout):
                found.setdefault(note, []).append(placement.candidate.name)
    return tuple(
        f"{note} of {few(tuple(dict.fromkeys(names)))}: stored with the inputs first"
        for note, names in found.items()
    )


def effective_std(law: Law, weight: Tensor) -> float | None:
    """Root mean square of ``noisy - weight``: the law's own, or of seeded draws; None where there is no data."""
    if weight.is_meta or weight.numel() == 0:
        return None
    law = law.independent()
    with torch.no_grad():
        deviation = law.deviation(weight, law.strengths(weight))
    if deviation is not None:
        return deviation.double().square().mean().sqrt().item()
    draws = -(-_SAMPLES // weight.numel())
    with _seeds.seeded(_SEED, weight.device), torch.no_grad():
        squares = [(sample(law, weight).double() - weight.double()).square().mean() for _ in range(draws)]
    return torch.stack(squares).mean().sqrt().item()
