"""The cost of a random number: torch's generator, and the one of this package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

import weightnoise as wn
from tests.benchmarks.contenders import Step
from tests.benchmarks.measure import Row, against, interleave, short
from tests.benchmarks.options import Options, markdown

COUNT = 1_000_000


def run(options: Options) -> list[Row]:
    """A row for each way; ``ns`` is nanoseconds per number."""
    layer = wn.add_weight_noise(nn.Linear(1000, COUNT // 1000, bias=False).requires_grad_(False), 0.01)
    weight = torch.randn(COUNT // 1000, 1000)
    ways: dict[str, Step] = {
        "w.clone()": lambda: _forget(weight.clone()),
        "torch.randn_like(w)": lambda: _forget(torch.randn_like(weight)),
        "w + 0.01 * torch.randn_like(w)": lambda: _forget(weight + 0.01 * torch.randn_like(weight)),
        "layer.weight, weightnoise on": lambda: _forget(layer.weight),
    }
    rows = []
    before = torch.get_num_threads()
    for threads in dict.fromkeys((1, options.threads)):
        torch.set_num_threads(threads)
        try:
            times = interleave(ways, options.seconds / 5, options.about(f"{threads} threads"), "w.clone()")
        finally:
            torch.set_num_threads(before)
        found = [against(times, name, "w.clone()") for name in ways]
        rows += [{"threads": threads, **row, "ns": short(1e6 * row["milliseconds"] / COUNT)} for row in found]
    return rows


def table(rows: Sequence[Row]) -> str:
    """Nanoseconds per number, a column for each number of threads."""
    counts = list(dict.fromkeys(row["threads"] for row in rows))
    cells: dict[str, list[str]] = {}
    for row in rows:
        cells.setdefault(f"`{row['contender']}`", []).append(f"{row['ns']:.2f}")
    heads = [f"{count} thread{'s' * (count > 1)}, ns" for count in counts]
    return markdown([f"w of {COUNT:,} numbers", *heads], [[name, *line] for name, line in cells.items()])


def _forget(result: torch.Tensor) -> None:
    """What was computed is not needed."""
