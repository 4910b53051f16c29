"""``python -m tests.pretrained``: the accuracy of each model under noise, as a Markdown table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

import weightnoise as wn
from tests.pretrained.packages import missing
from tests.pretrained.task import Task
from tests.pretrained.tasks import TASKS

LAWS: dict[str, tuple[wn.Gaussian, tuple[float, ...]]] = {
    "absmax": (wn.Gaussian(1.0, relative_to="absmax"), (0.01, 0.02, 0.05)),
    "absmax of each output": (wn.Gaussian(1.0, relative_to="absmax", per=0), (0.01, 0.02, 0.05)),
    "std": (wn.Gaussian(1.0, relative_to="std"), (0.1, 0.2, 0.5)),
}


def cells(task: Task, draws: int) -> list[str]:
    """The clean accuracy in per cent, and that under each noise as mean ± standard error over the draws."""
    found = [f"{100 * task.accuracy(task.model):.1f}"]
    for law, levels in LAWS.values():
        report = wn.evaluate_robustness(
            task.model, task.accuracy, levels=levels, law=law, draws=draws, progress=False
        )
        pairs = zip(report.mean.tolist(), report.sem.tolist(), strict=True)
        found += [f"{100 * mean:.1f} ± {100 * sem:.1f}" for mean, sem in pairs]
    return found


def table(columns: dict[str, list[str]]) -> str:
    """A row for each noise, a column for each model."""
    heads = ["none", *(f"{level:g} {scale}" for scale, (_, levels) in LAWS.items() for level in levels)]
    lines = ["| noise | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    rows = zip(heads, *columns.values(), strict=True)
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.pretrained", description=__doc__)
    parser.add_argument("--draws", type=int, default=10, help="per level (default: %(default)s)")
    draws: int = parser.parse_args(argv).draws
    if missing():
        parser.exit(2, f"Not installed: {', '.join(missing())}. Run: pip install -e '.[test,pretrained]'\n")
    torch.set_num_threads(1)
    sys.stdout.write(table({name: cells(load(), draws) for name, load in TASKS.items()}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
