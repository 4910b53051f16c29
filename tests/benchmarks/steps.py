"""Training steps: every contender on every workload."""

from __future__ import annotations

from collections.abc import Sequence

from tests.benchmarks.measure import Row, compare
from tests.benchmarks.options import Options, grid, ratio
from tests.benchmarks.workloads import WORKLOADS


def run(options: Options) -> list[Row]:
    """A row for each workload and contender."""
    rows = []
    for name in options.workloads:
        found = compare(WORKLOADS[name], options.contenders, options.seconds, options.about(name))
        rows += [{"workload": name, **row} for row in found]
    return rows


def table(rows: Sequence[Row]) -> str:
    """Ratios to the plain step."""
    return grid(rows, "workload", ratio)
