"""How the cost of noise grows with the number of weight tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.benchmarks.growth import BATCH, CONTENDERS
from tests.benchmarks.measure import Row, compare
from tests.benchmarks.options import Options, grid, ratio
from tests.benchmarks.workloads import Workload, labels

SMALL = 32
SHAPES = ((1, 1000), (10, 316), (100, 100), (1000, SMALL), (1, SMALL), (10, SMALL), (100, SMALL))


class Deep(nn.Module):
    """Linear layers on a residual stream that keeps its size, however many they are."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.add(x, layer(x), alpha=1 / len(self.layers))
        return x


def family(layers: int, width: int) -> Workload:
    """So many square weights and nothing else."""
    return Workload(lambda: Deep(layers, width), lambda: (torch.randn(BATCH, width), labels(BATCH, width)))


def run(options: Options, shapes: Sequence[tuple[int, int]] = SHAPES) -> list[Row]:
    """A row for each shape and contender; ``us`` is the microseconds per tensor on top of the plain step."""
    rows = []
    for layers, width in shapes:
        about = options.about(f"{layers} x {width}")
        found = compare(family(layers, width), CONTENDERS, options.seconds, about)
        place = {"tensors": layers, "width": width, "name": f"{layers} of {width} x {width}"}
        rows += [{**place, **row, "us": 1e3 * row["extra"] / layers} for row in found]
    return rows


def table(rows: Sequence[Row]) -> str:
    """Ratios for one number of parameters, then microseconds per tensor for small ones."""
    million = [row | {"tensors": row["name"]} for row in rows if row["width"] != SMALL or row["tensors"] == 1000]
    small = sorted((row for row in rows if row["width"] == SMALL), key=lambda row: row["tensors"])
    small = [row | {"tensors": f"{row['tensors']:,} of {SMALL} x {SMALL}"} for row in small]
    second = grid(small, "tensors", lambda row: f"{row['us']:.1f}", unit="µs each")
    return "\n\n".join([*([grid(million, "tensors", ratio)] if million else []), second])
