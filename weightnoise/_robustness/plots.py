"""Figures of reports. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from matplotlib.figure import Figure

from weightnoise._errors import OptionError
from weightnoise._robustness.tables import level_name

RobustnessReport: TypeAlias = Any  # It imports this file for its `plot`.

# Okabe and Ito's colours, which remain apart for colour-blind readers.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"


def plot_report(report: RobustnessReport, metric: str, level: str = "noise level", log: bool = False) -> Figure:
    """Bands over the levels; bars where there is a single level, as in a sensitivity."""
    bars = len(report.levels) == 1
    if log and (bars or _named(report)):
        raise OptionError("plot(log=True) needs two levels or more, and numbers: leave log=True out.")
    size = (7, max(4.4, 1.2 + 0.3 * len(report.curves))) if bars else (7, 4.4)
    figure = Figure(figsize=size, layout="constrained")
    axes: Any = figure.subplots()
    clean = dict.fromkeys(filter(math.isfinite, report.clean.values()))
    for place, value in enumerate(clean):
        line = axes.axvline if bars else axes.axhline
        line(value, color="#444444", linestyle=":", label=None if place else "without noise", zorder=3)
    if log:  # Before anything is drawn, since margins are measured on this scale.
        _logarithmic(axes, report.levels)
    if bars:
        _bars(axes, report, metric, level, bool(clean))
    else:
        draw_bands(axes, report, metric)
        axes.set(xlabel=level)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _named(report: RobustnessReport) -> bool:
    return any(isinstance(level, str) for level in report.levels)


def _logarithmic(axes: Any, levels: Sequence[float]) -> None:
    """A logarithmic axis, with a linear part where there is a 0, or a number below it."""
    if min(levels) > 0:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=min((abs(level) for level in levels if level), default=1.0))


def draw_bands(axes: Any, report: RobustnessReport, metric: str, colors: Sequence[str] = _COLORS) -> None:
    """Mean over the levels in a band of one standard deviation, for each curve."""
    named = _named(report)
    x = range(len(report.levels)) if named else report.levels
    for place, name in enumerate(report.curves):
        part, color = report[name], colors[place % len(colors)]
        mean, std = part.mean.numpy(), part.std.numpy()
        axes.plot(x, mean, color=color, marker=_MARKERS[place % len(_MARKERS)], label=name)
        axes.fill_between(x, mean - std, mean + std, color=color, alpha=0.18, linewidth=0)
    if report.threshold is not None:
        axes.axhline(report.threshold, color="#7a7a7a", linestyle="--", label="threshold")
    axes.set(xlabel="noise level", ylabel=metric)
    if named:
        axes.set(xticks=x, xticklabels=[level_name(level) for level in report.levels])
    axes.set_title("mean ± 1 standard deviation over draws", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _bars(axes: Any, report: RobustnessReport, metric: str, level: str, lined: bool) -> None:
    parts = {name: report[name] for name in report.curves}
    order = sorted(parts, key=lambda name: parts[name].mean.item(), reverse=report.higher_is_better)
    means = [parts[name].mean.item() for name in order]
    axes.barh(order, means, xerr=[parts[name].sem.nan_to_num(0.0).item() for name in order], color=_COLORS[0])
    dotted = "; dotted: without noise" if lined else ""  # A legend would lie on the bars.
    axes.set(xlabel=f"{metric} (mean ± standard error over draws{dotted})")
    axes.set_title(f"{level} {level_name(report.levels[0])}, most sensitive at the top", fontsize="medium")


def plot_layers(report: Any) -> Figure:
    """Bars of a `LayerReport`: the error of each layer, and what of it reaches the output of the model."""
    figure = Figure(figsize=(7, 1.2 + 0.45 * len(report.rows)), layout="constrained")
    axes: Any = figure.subplots()
    places = range(len(report.rows))
    spread = [
        0.0 if row.model_error_sem != row.model_error_sem else 100 * row.model_error_sem for row in report.rows
    ]
    errors = [100 * row.model_error for row in report.rows]
    layers = [0.0 if row.layer_error != row.layer_error else 100 * row.layer_error for row in report.rows]
    axes.barh([place - 0.2 for place in places], errors, 0.4, xerr=spread, color=_COLORS[0], label="of the model")
    axes.barh([place + 0.2 for place in places], layers, 0.4, color=_COLORS[5], label="of the layer")
    axes.set(yticks=places, yticklabels=[row.name for row in report.rows], xlabel="relative error, %")
    axes.invert_yaxis()
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
