"""Reports put together, and the differences between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from weightnoise._errors import SpecError
from weightnoise._robustness.measurements import Measurements

ReportT = TypeVar("ReportT", bound=Measurements)

MAY_DIFFER = ("date", "python", "threads")  # In what reports were made by: they change no draw.


def config(report: Measurements) -> dict[str, Any]:
    """All that the numbers of a report depend on, but for which draws it has."""
    made_by = {name: value for name, value in report.made_by.items() if name not in MAY_DIFFER}
    fields = ("levels", "threshold", "higher_is_better", "antithetic")
    return {**made_by, **{name: getattr(report, name) for name in fields}}


def differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """What differs between two configurations, with both values."""
    return [
        f"{name} ({first.get(name)!s} and {second.get(name)!s})"
        for name in dict.fromkeys([*first, *second])
        if first.get(name) != second.get(name)
    ]


def merged(reports: Sequence[ReportT]) -> ReportT:
    """All draws of reports that belong together, each once."""
    first = reports[0]
    for other in reports[1:]:
        if differences := differing(config(first), config(other)):
            raise SpecError(f"The reports differ in {', '.join(differences)}: their draws are not of one kind.")
    seeds = list(dict.fromkeys(seed for report in reports for seed, _ in report.chips))
    chips = sorted(
        {chip for report in reports for chip in report.chips}, key=lambda one: (seeds.index(one[0]), one)
    )
    names = list(dict.fromkeys(name for report in reports for name in report.curves))
    pairs = {name: _joined(name, reports, chips) for name in names}
    made_by = {
        name: "; ".join(dict.fromkeys(report.made_by[name] for report in reports if name in report.made_by))
        for name in first.made_by
    }
    return replace(
        first,
        curves={name: values for name, (values, _) in pairs.items()},
        measured={name: mask for name, (_, mask) in pairs.items()},
        chips=tuple(chips),
        made_by=made_by,
        clean={name: value for report in reversed(reports) for name, value in report.clean.items()},
    )


def _joined(name: str, reports: Sequence[Measurements], chips: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """The values of one curve for all draws, and what of it was measured."""
    shape = (len(reports[0].levels), len(chips))
    values = torch.full(shape, torch.nan, dtype=torch.float64, device="cpu")
    mask = torch.zeros(shape, dtype=torch.bool, device="cpu")
    place = {chip: column for column, chip in enumerate(chips)}
    for report in reports:
        if name not in report.curves:
            continue
        columns = torch.tensor([place[chip] for chip in report.chips], dtype=torch.int64, device="cpu")
        new, there, before = report.curves[name].double(), report.measured[name], values[:, columns]
        same = (new == before) | (new.isnan() & before.isnan())
        if twice := (there & mask[:, columns] & ~same).any(dim=0).nonzero().flatten().tolist():
            seed, number = report.chips[twice[0]]
            raise SpecError(
                f"Draw {number} of seed {seed} has two values for {name!r}: it was measured differently."
            )
        values[:, columns] = torch.where(there, new, before)
        mask[:, columns] |= there
    return values, mask


def differences(first: ReportT, second: ReportT) -> ReportT:
    """``first - second`` in the draws that both have."""
    (name, mine), (other, theirs) = (_only(report) for report in (first, second))
    if first.levels != second.levels or first.antithetic != second.antithetic:
        raise SpecError("The reports differ in their levels or in the kind of draws, so that these are no pairs.")
    chips = [chip for chip in first.chips if chip in set(second.chips)]
    if not chips:
        raise SpecError("The reports have no draw in common: give both the same seed.")
    here, there = (
        torch.tensor([report.chips.index(chip) for chip in chips], dtype=torch.int64, device="cpu")
        for report in (first, second)
    )
    known = name in first.clean and other in second.clean
    label = f"{name} - {other}" if name != other else f"{name}: first - second"
    return replace(
        first,
        curves={label: mine[:, here].double() - theirs[:, there].double()},
        measured={label: first.measured[name][:, here] & second.measured[other][:, there]},
        chips=tuple(chips),
        threshold=None,
        clean={label: first.clean[name] - second.clean[other]} if known else {},
        made_by={
            key: value if second.made_by.get(key) == value else f"{value} - {second.made_by.get(key)}"
            for key, value in first.made_by.items()
        },
    )


def _only(report: Measurements) -> tuple[str, Tensor]:
    values = report.values  # Which says so where there are several.
    return next(iter(report.curves)), values
