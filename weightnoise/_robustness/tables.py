"""A report as tables, text and files, and back from them."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch

from weightnoise._errors import OptionError, SpecError
from weightnoise._robustness.measurements import Level, Measurements
from weightnoise._robustness.sample import Sample
from weightnoise._select.patterns import listed

Shown: TypeAlias = Literal["mean", "interval", "yield", "worst"] | float

_SHOWN = ("mean", "interval", "yield", "worst")


def to_dict(report: Measurements) -> dict[str, Any]:
    """What `RobustnessReport.to_dict` returns."""
    curves = {
        name: [
            [_written(value) if there else None for value, there in zip(row, mask, strict=True)]
            for row, mask in zip(values.tolist(), report.measured[name].tolist(), strict=True)
        ]
        for name, values in report.curves.items()
    }
    # Draws with numbers that follow each other: the seed, the first and how many.
    runs = [
        [seed, group[0][1][1], len(group)]
        for (seed, _), each in itertools.groupby(
            enumerate(report.chips), lambda one: (one[1][0], one[1][1] - one[0])
        )
        if (group := list(each))
    ]
    return {
        "levels": list(report.levels),
        "curves": curves,
        "seed": report.seed,
        "threshold": report.threshold,
        "higher_is_better": report.higher_is_better,
        "antithetic": report.antithetic,
        "chips": runs,
        "clean": {name: _written(value) for name, value in report.clean.items()},
        "made_by": dict(report.made_by),
    }


def _written(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def fields_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the report that `to_dict` wrote."""
    try:
        curves, measured = {}, {}
        for name, rows in content["curves"].items():
            numbers = [[math.nan if value is None else _read(value) for value in row] for row in rows]
            curves[name] = torch.tensor(numbers, dtype=torch.float64, device="cpu")
            there = [[value is not None for value in row] for row in rows]
            measured[name] = torch.tensor(there, dtype=torch.bool, device="cpu")
        options = {name: content[name] for name in ("seed", "threshold", "higher_is_better", "made_by")}
        runs = content.get("chips", [])
        chips = tuple((seed, first + place) for seed, first, count in runs for place in range(count))
        levels = tuple(level if isinstance(level, str) else float(level) for level in content["levels"])
        found = {**options, "levels": levels, "curves": curves, "measured": measured, "chips": chips}
        found["antithetic"] = content.get("antithetic", False)
        found["clean"] = {name: _read(value) for name, value in content.get("clean", {}).items()}
        _check_kinds(found)
        Measurements(**found)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise SpecError(f"This is no report of RobustnessReport.to_dict, or a damaged one: {what}.") from None
    return found


def _check_kinds(found: Mapping[str, Any]) -> None:
    """Refuse what is of another kind than in any report."""
    numbers = (float, int)
    good = {
        "seed": type(found["seed"]) is int,
        "threshold": found["threshold"] is None or type(found["threshold"]) in numbers,
        "higher_is_better": type(found["higher_is_better"]) is bool,
        "antithetic": type(found["antithetic"]) is bool,
        "made_by": all(isinstance(one, str) for pair in found["made_by"].items() for one in pair),
        "chips": all(type(one) is int for chip in found["chips"] for one in chip),
    }
    if wrong := [name for name, is_good in good.items() if not is_good]:
        raise TypeError(f"{listed(wrong)} cannot be {' or '.join(repr(found[name]) for name in wrong)}")


def _read(value: Any) -> float:
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def to_json(report: Measurements) -> str:
    """`to_dict` as text."""
    return json.dumps(to_dict(report), indent=1)


def content_of(text: str) -> Mapping[str, Any]:
    """What is in the text that `to_json` wrote."""
    try:
        content: Mapping[str, Any] = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise SpecError(f"This is no report of RobustnessReport.to_json, or a damaged one: {error}.") from None
    return content


def rows(report: Measurements) -> list[dict[str, Any]]:
    """One dict for each curve, level and draw that was measured."""
    return [
        {"curve": name, "level": level, "draw": draw, "value": value}
        for name, values in report.curves.items()
        for level, row, mask in zip(report.levels, values.tolist(), report.measured[name].tolist(), strict=True)
        for draw, (value, there) in enumerate(zip(row, mask, strict=True))
        if there
    ]


def to_csv(report: Measurements) -> str:
    """`rows` as comma-separated text with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["curve", "level", "draw", "value"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(report))
    return text.getvalue()


def level_name(level: Level) -> str:
    """A level in a table."""
    return level if isinstance(level, str) else f"{level:g}"


def to_markdown(report: Measurements, show: Sequence[Shown]) -> str:
    """A line per level, and for each curve a column for each thing to show."""
    for one in show:
        number = one if isinstance(one, (int, float)) and not isinstance(one, bool) else -1.0
        if one not in _SHOWN and not 0 <= number <= 1:
            listed = ", ".join(map(repr, _SHOWN))
            raise OptionError(f"to_markdown(*show) takes {listed} or a quantile from 0 to 1, got {one!r}.")
        if one == "yield":
            report._threshold()
    heads = [
        name if tuple(show) == ("mean",) else f"{name}: {_title(one)}" for name in report.curves for one in show
    ]
    lines = ["| level | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    samples = [report[name].samples for name in report.curves]
    for place, level in enumerate(report.levels):
        cells = [_cell(report, of[place], one) for of in samples for one in show]
        lines.append(f"| {level_name(level)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _title(one: Shown) -> str:
    return one if isinstance(one, str) else f"{100 * one:g} % quantile"


def _cell(report: Measurements, sample: Sample, one: Shown) -> str:
    if sample.count == 0:
        return "-"
    if one == "mean":
        # One draw has no standard error.
        error = f" ± {sample.sem:.2g}" if not math.isnan(sample.sem) else ""
        return f"{sample.mean:.4g}{error}"
    if one == "interval":
        margin = sample.margin(0.95)
        return f"{sample.mean - margin:.4g} to {sample.mean + margin:.4g}"
    if one == "yield":
        low, high = sample.share_interval(report._threshold(), 0.95)
        return f"{100 * sample.share(report._threshold()):.3g} % ({100 * low:.3g} to {100 * high:.3g})"
    return f"{sample.worst if isinstance(one, str) else sample.quantile(one):.4g}"


def to_text(report: Measurements) -> str:
    """The table of the report, yield and worst chip where there is a threshold, and what to know about it."""
    show: tuple[Shown, ...] = ("mean",) if report.threshold is None else ("mean", "yield", "worst")
    made = ", ".join(f"{name} {value}" for name, value in report.made_by.items())
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(seed for seed, _ in report.chips))
    yields = (
        "" if report.threshold is None else f"; yield: the share of draws that reach {report.threshold:g}, 95 %"
    )
    clean = {value for value in report.clean.values() if not math.isnan(value)}
    without = f"; without noise {clean.pop():.4g}" if len(clean) == 1 else ""
    caption = (
        f"mean ± standard error over draws{without}{yields}; seed {seeds or report.seed}{made and ', ' + made}"
    )
    return "\n".join([to_markdown(report, show), *notes(report), caption])


def _is_enough(report: Measurements, sample: Sample) -> bool:
    """Whether a level is known as precisely as was asked."""
    number, _, percent = report.made_by.get("until_sem", "").partition(" ")
    return number != "" and sample.is_precise(float(number) / (100 if percent else 1), bool(percent))


def notes(report: Measurements) -> Iterator[str]:
    """What a reader of the table must know besides, a line each."""
    asked = len(report.chips)
    for name in report.curves:
        part = report[name]
        for level, sample, diverged in zip(report.levels, part.samples, part.diverged.tolist(), strict=True):
            where = f"{name} at level {level_name(level)}"
            if diverged:
                yield f"{where}: {diverged} of {sample.count} draws are NaN"
            if sample.count < asked and _is_enough(report, sample):
                yield f"{where}: stopped early after {sample.count} of {asked} draws"
            elif 0 < sample.count < asked:
                yield f"{where}: {sample.count} of {asked} draws are measured"
            if sample.count > 1 and level != 0 and sample.std == 0:
                unseen = 1 - 0.05 ** (1 / len(sample.unit_means))
                more = f"up to {100 * unseen:.2g} % of chips may differ"
                yield f"{where}: all {sample.count} draws are equal; {more}"
