"""``python -m tests.benchmarks.draws``: many draws of small models, one by one and together, as a table."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.benchmarks.__main__ import machine

DRAWS = (8, 32, 100)


def models() -> dict[str, tuple[nn.Module, Tensor]]:
    """Small models, each with its evaluation data."""
    mlp = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    large = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    conv = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten())
    return {
        "MLP 64-128-64-10, 64 examples": (mlp, torch.randn(64, 64)),
        "MLP 64-128-64-10, 1000 examples": (mlp, torch.randn(1000, 64)),
        "MLP 784-100-100-10, 128 examples": (large, torch.randn(128, 784)),
        "2 convolutions, 8 x 8, 64 examples": (conv, torch.randn(64, 1, 8, 8)),
        "24 x Linear(8, 8), 64 examples": (
            nn.Sequential(*(nn.Linear(8, 8) for _ in range(24))),
            torch.randn(64, 8),
        ),
    }


def evaluation(model: nn.Module, x: Tensor, draws: int, *, together: bool) -> Callable[[], object]:
    """An evaluation at one level."""

    @torch.no_grad()
    def metric(model: nn.Module) -> Tensor:
        return model(x).square().mean()

    return lambda: wn.evaluate_robustness(
        model, metric, levels=[0.1], law=wn.Gaussian(1.0), draws=draws, progress=False, vectorize=together
    )


def compare(one_by_one: Callable[[], object], together: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median milliseconds one by one, and the median ratio of the two, in turns."""
    times: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for place, run in enumerate((one_by_one, together)):
            start = time.perf_counter()
            run()
            if number:
                times[place].append(1e3 * (time.perf_counter() - start))
    ratios = [slow / fast for slow, fast in zip(*times, strict=True)]
    return statistics.median(times[0]), statistics.median(ratios)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.draws", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--draws", type=int, nargs="+", default=list(DRAWS))
    options = parser.parse_args(argv)
    torch.set_num_threads(2)
    torch.manual_seed(0)
    on = machine()
    heads = " | ".join(f"{draws} draws: ms a draw | together, times faster" for draws in options.draws)
    lines = [f"{on['processor']}, 2 threads, torch {on['torch']}, {wn.engine()}.", "", f"| model | {heads} |"]
    lines.append("|---" * (2 * len(options.draws) + 1) + "|")
    for name, (model, x) in models().items():
        cells = []
        for draws in options.draws:
            pair = [evaluation(model, x, draws, together=together) for together in (False, True)]
            milliseconds, ratio = compare(pair[0], pair[1], options.rounds)
            cells.append(f"{milliseconds / draws:.2f} | {ratio:.1f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
