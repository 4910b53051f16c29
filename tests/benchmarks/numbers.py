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


class Weight(nn.Module):
    """Puts out its weight, so that a forward is one read of it."""

    def __init__(self, rows: int = 1000, columns: int = COUNT // 1000) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns) / columns**0.5, requires_grad=False)

    def forward(self) -> torch.Tensor:
        return self.weight


def run(options: Options) -> list[Row]:
    """A row for each way; ``ns`` is nanoseconds per number."""
    layer = wn.add_weight_noise(Weight(), 0.01)
    weight = torch.randn(1000, COUNT // 1000)
    ways: dict[str, Step] = {
        "w.clone()": lambda: forget(weight.clone()),
        "torch.randn_like(w)": lambda: forget(torch.randn_like(weight)),
        "w + 0.01 * torch.randn_like(w)": lambda: forget(weight + 0.01 * torch.randn_like(weight)),
        "the weight in a forward, weightnoise on": lambda: forget(layer()),
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


def forget(result: torch.Tensor) -> None:
    """What was computed is not needed."""
