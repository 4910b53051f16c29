"""The peers, each measured by a process in its own environment."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from tests.benchmarks.measure import Row
from tests.benchmarks.memory import extra
from tests.benchmarks.options import Options, markdown
from tests.benchmarks.peaks import WIDTH
from tests.benchmarks.peers.environments import REQUIREMENTS, python_of
from tests.benchmarks.peers.sweeps import DRAWS
from tests.benchmarks.processes import TRIMMED, ProcessError, run

LAYERS = 10  # Some peers take ten times the memory of the weights.
WORKER = "tests.benchmarks.peers.worker"
MODELS = ("MLP 784-100-100-10, batch 64", "MLP 1024 x 3 - 10, batch 128")
OTHER = (
    "small ResNet, 32 x 32, batch 16",
    "4-layer Transformer, d = 256, 8 x 128 tokens",
    "LSTM 128-512, 50 steps, batch 16",
)

FindPython: TypeAlias = Callable[[Path, str, str, Callable[[str], None]], Path]


def measure(
    options: Options,
    find: FindPython = python_of,
    layers: int = LAYERS,
    width: int = WIDTH,
    models: Sequence[str] = MODELS,
    other: Sequence[str] = OTHER,
) -> list[Row]:
    """A row for each peer: its version and figures, or the reason why it has none."""
    rows = []
    for name in options.names or REQUIREMENTS:
        row: Row = {"peer": name, "requirement": REQUIREMENTS[name]}
        try:
            python = find(options.peers, name, REQUIREMENTS[name], options.about(name))
            row |= _figures(options, python, name, models, other)
            if "rows" in row:
                row["memory"] = _memory(options, python, name, layers, width)
        except ProcessError as error:
            row["error"] = str(error)
        rows.append(row)
    return rows


def _figures(options: Options, python: Path, name: str, models: Sequence[str], other: Sequence[str]) -> Row:
    options.progress(f"{name}: steps and draws")
    # There are many of them: half the time for each.
    counts = ["--seconds", str(options.seconds / 2), "--threads", str(options.threads), "--models", *models]
    counts += ["--other", *other]
    out = run([str(python), "-m", WORKER, name, *counts], 600 + 20 * options.seconds)
    found: Row = json.loads(out.splitlines()[-1])
    return found


def _memory(options: Options, python: Path, name: str, layers: int, width: int) -> Row:
    peaks = {}
    try:
        for way in ("plain", name):
            options.progress(f"{name}: memory, {way}")
            sizes = ["--memory", str(layers), str(width), "--threads", str(options.threads)]
            peaks[way] = float(run([str(python), "-m", WORKER, way, *sizes], 600, TRIMMED).splitlines()[-1])
    except ProcessError as error:
        return {"error": str(error)}
    return extra(name, peaks, layers, width)


def table(rows: Sequence[Row]) -> str:
    """Ratios of steps and draws with weightnoise's in the same rounds, memory, and the strength that is there."""
    models = list(dict.fromkeys(row["model"] for peer in rows for row in peer.get("rows", ())))
    heads = ["peer", *(f"{what}, {model}" for model in models for what in ("step", "draw"))]
    lines = []
    for peer in rows:
        name = f"{peer['peer']} {peer.get('version', '')}".strip()
        if "error" in peer:
            lines.append([name, f"does not run: {peer['error']}", *[""] * (len(heads))])
            continue
        if "rows" not in peer:  # It is made for evaluations alone.
            continue
        cells = [pair(peer, model, what) for model in models for what in ("step", "draw")]
        taken = peer["memory"]
        share = taken["error"] if "error" in taken else f"{taken['share']:.1f}"
        lines.append([name, *cells, share, f"{peer['strength']:.4f}"])
    first = markdown([*heads, "memory / weights", "std of the noise"], lines)
    return "\n\n".join(part for part in (first, other_layers(rows), swept(rows)) if part)


def swept(rows: Sequence[Row]) -> str:
    """Evaluations of robustness over the metric alone."""
    lines = []
    for peer in rows:
        found = {row["contender"]: row["ratio"] for row in peer.get("sweep", ())}
        if found:
            ratios = [f"{found[name]:.1f}" for name in (peer["peer"], "weightnoise on")]
            lines.append([f"{peer['peer']} {peer['version']}", *ratios])
    return markdown([f"a sweep of {DRAWS} draws / metric alone", "package", "weightnoise"], lines) if lines else ""


def other_layers(rows: Sequence[Row]) -> str:
    """Steps of models of other layers, with weightnoise's in the same rounds, and the share that is noisy."""
    models = list(dict.fromkeys(row["model"] for peer in rows for row in peer.get("other", ())))
    if not models:
        return ""
    lines = []
    for peer in rows:
        if peer.get("other"):
            lines.append([f"{peer['peer']} {peer['version']}", *(_other(peer, model) for model in models)])
    return markdown(["peer", *(f"step, {model}" for model in models)], lines)


def _other(peer: Row, model: str) -> str:
    found = {row.get("contender"): row for row in peer["other"] if row["model"] == model}
    if peer["peer"] not in found:
        return found[None]["error"] if None in found else ""
    own = found[peer["peer"]]
    part = "" if own["share"] > 0.99 else f", on {100 * own['share']:.0f} %"
    return f"{own['ratio']:.2f} ({found['weightnoise on']['ratio']:.2f}){part}"


def pair(peer: Row, model: str, what: str) -> str:
    """The peer's ratio to plain, and weightnoise's."""
    found = {
        row["contender"]: row["ratio"] for row in peer["rows"] if row["model"] == model and row["what"] == what
    }
    return f"{found[peer['peer']]:.2f} ({found['weightnoise on']:.2f})"
