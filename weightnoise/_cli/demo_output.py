"""The text and the figure of the demo. The figure needs matplotlib."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from weightnoise._cli.demo import ALONE, CONDITIONS, Curve, Results
from weightnoise._robustness.report import RobustnessReport

_COLORS = ("#7a7a7a", "#0b6e99")


def tables(results: Results) -> str:
    """Mean accuracy and its standard error: a table for each condition, and one for the parameters."""
    parts = [
        _table(f"{one.name}: {one.unit}", [f"{level:g}" for level in one.levels], curves)
        for one, curves in zip(CONDITIONS, results.conditions, strict=True)
    ]
    alone = f"Gaussian noise of {ALONE:g} on one weight matrix alone"
    return "\n\n".join([*parts, _table(alone, results.parameters, results.alone)])


def _table(title: str, columns: Sequence[str], curves: Sequence[Curve]) -> str:
    width = max(len(curve.label) for curve in curves) + 2
    lines = [title, "trained with".ljust(width) + "".join(f"{column:>12}" for column in columns)]
    for curve in curves:
        cells = (f"{mean:.1f} +- {error:.1f}" for mean, error in zip(curve.mean, curve.error, strict=True))
        lines.append(curve.label.ljust(width) + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def verdict(results: Results) -> str:
    """Print what was measured and what came out."""
    _, seeds, draws = results.alone[0].values.shape
    over = "networks" if seeds > 1 else "draws"
    measured = (
        f"Each number is the mean test accuracy in per cent, +- its standard error over the {over}, of "
        f"{_count(seeds, 'network')} under {draws} seeded draws each, on 500 test images. The noise is on the "
        "weight matrices, and one draw is held for the whole test set."
    )
    plain, noisy = results.conditions[0]
    clean = (
        f"Without noise at test time the networks trained with noise stand at {noisy.mean[0].item():.1f}, the "
        f"others at {plain.mean[0].item():.1f}. At the last level of each table those trained with noise are "
        f"{'; '.join(_gaps(results))}."
    )
    weakest = (
        f"{results.parameters[int(curve.mean.argmin())]} (trained with {curve.label})" for curve in results.alone
    )
    sensitive = f"The most sensitive matrix is {' and '.join(weakest)}."
    return "\n".join(textwrap.fill(text, width=79) for text in (measured, clean, sensitive))


def _gaps(results: Results) -> Iterator[str]:
    for condition, (plain, noisy) in zip(CONDITIONS, results.conditions, strict=True):
        gap = Curve("gap", noisy.values - plain.values)  # In pairs: both have the same seeds and draws.
        mean, error = gap.mean[-1].item(), gap.error[-1].item()
        side = "ahead" if mean > 0 else "behind"
        yield f"{abs(mean):.1f} +- {error:.1f} points {side} ({condition.name})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plot(results: Results) -> bytes:
    """A PNG of the accuracy under each condition and by parameter."""
    from matplotlib.figure import Figure

    from weightnoise._robustness.plots import draw_bands

    figure = Figure(figsize=(10, 7), layout="constrained")
    *axes, last = figure.subplots(2, 2).flat
    for ax in axes[1:]:
        ax.sharey(axes[0])
    for ax, condition, curves in zip(axes, CONDITIONS, results.conditions, strict=True):
        names = {f"trained with {curve.label}": curve.values.flatten(1) for curve in curves}
        draw_bands(ax, RobustnessReport(condition.levels, names), "test accuracy (%)", _COLORS)
        ax.set(xlabel=condition.unit, xlim=(condition.levels[0], condition.levels[-1]))
        ax.set_title(condition.name, fontsize="medium")
        ax.get_legend().set(visible=ax is axes[0])
    _draw_bars(last, results)
    for ax in (*axes, last):
        ax.spines[["top", "right"]].set_visible(False)
    _, seeds, draws = results.alone[0].values.shape
    figure.suptitle(
        f"Digits: how a network holds up under weight noise\nmean ± 1 standard deviation of "
        f"{_count(seeds, 'network')} x {draws} draws",
        fontsize="medium",
    )
    file = io.BytesIO()
    figure.savefig(file, dpi=120, format="png")
    return file.getvalue()


def _draw_bars(ax: Any, results: Results) -> None:
    places = range(len(results.parameters))
    for side, curve, color in zip((-0.2, 0.2), results.alone, _COLORS, strict=True):
        spread = curve.values.flatten(1).std(dim=1).numpy()
        ax.bar(
            [place + side for place in places], curve.mean.numpy(), 0.4, yerr=spread, color=color, ecolor="#333333"
        )
    ax.set(xticks=places, xticklabels=results.parameters, ylabel="test accuracy (%)", ylim=(0, 100))
    ax.set_title(f"Gaussian noise of {ALONE:g} on one weight matrix alone", fontsize="medium")
