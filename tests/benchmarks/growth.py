"""How the cost of noise grows with the number of parameters."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence

import torch

from tests.benchmarks.measure import Row, compare
from tests.benchmarks.options import Options, grid, ratio
from tests.benchmarks.workloads import Workload, labels, mlp

CONTENDERS = ("weightnoise on", "weightnoise off", "naive parametrization", "copy and restore")
SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
BATCH = 64


def family(parameters: int) -> Workload:
    """An MLP of three equal square matrices and a classifier, with about so many parameters."""
    width = math.isqrt(parameters // 3)
    return Workload(
        lambda: mlp(width, width, width, width, 10), lambda: (torch.randn(BATCH, width), labels(BATCH))
    )


def run(options: Options, sizes: Sequence[int] = SIZES) -> list[Row]:
    """A row for each size and contender."""
    rows = []
    for size in sizes:
        found = compare(family(size), CONTENDERS, options.seconds, options.about(f"{size:,} parameters"))
        rows += [{"parameters": size, **row, "ns": 1e6 * row["extra"] / size} for row in found]
        gc.collect()
    return rows


def table(rows: Sequence[Row]) -> str:
    """Ratios to the plain step, then nanoseconds per parameter on top of it."""
    second = grid(rows, "parameters", lambda row: f"{row['ns']:.2f}", unit="ns each")
    return f"{grid(rows, 'parameters', ratio)}\n\n{second}"
