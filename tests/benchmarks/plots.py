"""The figures of the page about benchmarks."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tests.benchmarks.measure import Row
from tests.benchmarks.record import Record
from tests.benchmarks.tensors import SMALL

# Okabe and Ito's colours, told apart by all; the same for a contender in every figure.
STYLES = {
    "weightnoise on": ("#0072b2", "o"),
    "weightnoise, recompute": ("#00416b", ">"),
    "weightnoise off": ("#56b4e9", "v"),
    "weightnoise removed": ("#b5dcf2", "<"),
    "naive parametrization": ("#d55e00", "s"),
    "copy and restore": ("#009e73", "D"),
    ".data add and restore": ("#cc79a7", "^"),
    "functional_call": ("#e69f00", "P"),
    "free random numbers": ("#9a9a9a", "X"),
}
GREY = "#9a9a9a"


def panels(count: int, height: float, width: float = 9.0) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8)
        one.xaxis.label.set_fontsize(9)
        one.yaxis.label.set_fontsize(9)
        one.title.set_fontsize(9)
    return figure, axes


def names_in(rows: Sequence[Row]) -> list[str]:
    """The contenders beside the plain step."""
    return [name for name in dict.fromkeys(row["contender"] for row in rows) if name != "plain"]


def steps(rows: Sequence[Row]) -> Figure:
    """The ratio of each contender, workload by workload."""
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    figure, [axes] = panels(1, 0.6 + 0.55 * len(workloads))
    shown = names_in(rows)
    for row in rows:
        if row["contender"] == "plain":
            continue
        color, mark = STYLES[row["contender"]]
        place = workloads.index(row["workload"]) + 0.07 * (shown.index(row["contender"]) - len(shown) / 2)
        axes.plot(row["quartiles"], [place, place], color=color, linewidth=1.5)
        label = row["contender"] if row["workload"] == workloads[0] else None
        axes.plot(row["ratio"], place, mark, color=color, markersize=5, label=label)
    axes.axvline(1.0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(workloads)), workloads)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="time of a step / time of the plain step")
    axes.set_xticks([1, 1.5, 2, 3, 5, 10], ["1", "1.5", "2", "3", "5", "10"])
    axes.minorticks_off()
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def lines(axes: Axes, rows: Sequence[Row], across: str, up: str) -> None:
    """A curve for each contender."""
    for name in names_in(rows):
        mine = sorted((row for row in rows if row["contender"] == name), key=lambda row: row[across])
        color, mark = STYLES[name]
        places = [row[across] for row in mine]
        axes.plot(places, [row[up] for row in mine], color=color, marker=mark, markersize=4, label=name)
        if up == "ratio":
            low, high = zip(*(row["quartiles"] for row in mine), strict=True)
            axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
    if up == "ratio":
        axes.axhline(1.0, color=GREY, linewidth=0.8)
    axes.set_xscale("log")


def growth(rows: Sequence[Row]) -> Figure:
    """The ratio, and nanoseconds per parameter, over the number of parameters."""
    figure, (left, right) = panels(2, 3.0)
    lines(left, rows, "parameters", "ratio")
    left.set(xlabel="parameters", ylabel="step / plain step")
    lines(right, [row for row in rows if row["contender"] != "weightnoise off"], "parameters", "ns")
    right.set(xlabel="parameters", ylabel="ns per parameter on top of plain", yscale="log")
    left.legend(fontsize=7)
    return figure


def tensors(rows: Sequence[Row]) -> Figure:
    """The ratio for one number of parameters, and microseconds per tensor for small ones."""
    figure, (left, right) = panels(2, 3.0)
    million = [row for row in rows if row["width"] != SMALL or row["tensors"] == 1000]
    lines(left, million, "tensors", "ratio")
    left.set(xlabel="tensors, a million parameters in all", ylabel="step / plain step")
    lines(right, [row for row in rows if row["width"] == SMALL], "tensors", "us")
    right.set(xlabel=f"tensors of {SMALL} x {SMALL}", ylabel="µs per tensor on top of plain")
    left.legend(fontsize=7)
    return figure


def peers(rows: Sequence[Row]) -> Figure:
    """The ratio of a training step, peer by peer, with weightnoise's in the same rounds."""
    there = [row for row in rows if row.get("rows")]
    models = list(dict.fromkeys(row["model"] for peer in there for row in peer["rows"]))
    figure, axes = panels(max(1, len(models)), 0.9 + 0.24 * len(there))
    for panel, model in zip(axes, models, strict=False):
        for place, peer in enumerate(there):
            for row in peer["rows"]:
                if row["model"] != model or row["what"] != "step" or row["contender"] == "plain":
                    continue
                ours = row["contender"] == "weightnoise on"
                color, mark = STYLES["weightnoise on"] if ours else ("#d55e00", "s")
                label = ("weightnoise" if ours else "the peer") if place == 0 else None
                panel.plot(row["quartiles"], [place, place], color=color, linewidth=1.5)
                panel.plot(row["ratio"], place, mark, color=color, markersize=5, label=label)
        panel.axvline(1.0, color=GREY, linewidth=0.8)
        panel.set_yticks(range(len(there)), [peer["peer"] for peer in there])
        panel.invert_yaxis()
        panel.set_title(model, fontsize=9)
        panel.set_xlabel("step / plain step")
    if there:
        axes[0].legend(fontsize=7)
    return figure


FIGURES: dict[str, Callable[[Sequence[Row]], Figure]] = {
    "steps": steps,
    "growth": growth,
    "tensors": tensors,
    "peers": peers,
}


def draw_all(record: Record, folder: Path) -> None:
    """Draw what the record has rows for."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        if name in record and record[name]["rows"]:
            save(draw(record[name]["rows"]), folder / f"benchmark-{name}.png")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG with a palette, which takes a third of the space."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    Image.open(buffer).convert("RGB").quantize(200).save(path, optimize=True)
