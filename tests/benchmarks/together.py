"""Many draws of small models: `evaluate_robustness` one by one, and with ``vectorize=True``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.benchmarks.contenders import Step
from tests.benchmarks.measure import Row, against, interleave
from tests.benchmarks.options import Options, markdown
from tests.benchmarks.workloads import mlp

DRAWS = (8, 32, 100)


def models() -> dict[str, tuple[nn.Module, Tensor]]:
    """Small models, each with its evaluation data."""
    small, large = mlp(64, 128, 64, 10), mlp(784, 100, 100, 10)
    conv = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten())
    return {
        "MLP 64-128-64-10, 64 examples": (small, torch.randn(64, 64)),
        "MLP 64-128-64-10, 1000 examples": (small, torch.randn(1000, 64)),
        "MLP 784-100-100-10, 128 examples": (large, torch.randn(128, 784)),
        "2 convolutions, 8 x 8, 64 examples": (conv, torch.randn(64, 1, 8, 8)),
        "24 x Linear(8, 8), 64 examples": (
            nn.Sequential(*(nn.Linear(8, 8) for _ in range(24))),
            torch.randn(64, 8),
        ),
    }


def evaluation(model: nn.Module, x: Tensor, draws: int, *, together: bool) -> Step:
    """An evaluation at one level."""

    @torch.no_grad()
    def metric(model: nn.Module) -> Tensor:
        return model(x).square().mean()

    def evaluate() -> None:
        law = wn.Gaussian(1.0)
        wn.evaluate_robustness(
            model, metric, levels=[0.1], law=law, draws=draws, progress=False, vectorize=together
        )

    return evaluate


def run(options: Options, draws: Sequence[int] = DRAWS) -> list[Row]:
    """A row for each model and number of draws; ``faster`` is how many times faster together are."""
    torch.manual_seed(0)
    rows = []
    for name, (model, x) in models().items():
        for count in draws:
            ways = {
                way: evaluation(model, x, count, together=way == "together") for way in ("together", "one by one")
            }
            about = options.about(f"{name}, {count} draws")
            times = interleave(ways, options.seconds / 5, about, first="one by one")
            row = against(times, "one by one", "together")
            rows.append({"model": name, "draws": count, "ms": row["milliseconds"] / count, "faster": row["ratio"]})
    return rows


def table(rows: Sequence[Row]) -> str:
    """Milliseconds a draw and how much faster together is, for each number of draws."""
    counts = list(dict.fromkeys(row["draws"] for row in rows))
    cells: dict[str, list[str]] = {}
    for row in rows:
        cells.setdefault(row["model"], []).extend([f"{row['ms']:.2f}", f"{row['faster']:.1f}"])
    heads = [head for count in counts for head in (f"{count} draws: ms a draw", "together, times faster")]
    return markdown(["model", *heads], [[name, *line] for name, line in cells.items()])
