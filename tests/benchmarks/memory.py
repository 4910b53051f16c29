"""What noise adds to the peak memory of a training step: each figure is the peak of a process of its own.

Gradients are kept between steps and the optimizer needs no memory, so that nothing hides what noise takes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

import weightnoise as wn
from tests.benchmarks import contenders, processes
from tests.benchmarks.contenders import Contender, Step, plain_step
from tests.benchmarks.measure import Row, short
from tests.benchmarks.options import Options, markdown
from tests.benchmarks.workloads import Workload, labels

LAYERS, WIDTH, BATCH = 25, 2000, 32


class KeepingSGD(torch.optim.SGD):
    """Takes no memory of its own, and keeps the gradients."""

    def zero_grad(self, set_to_none: bool = False) -> None:
        super().zero_grad(set_to_none=set_to_none)


def workload(layers: int, width: int) -> Workload:
    """Square matrices, as many as asked for."""
    return Workload(
        lambda: nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers))),
        lambda: (torch.randn(BATCH, width), labels(BATCH, width)),
        optimizer=sgd,
    )


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of this comparison."""
    return KeepingSGD(parameters, lr=1e-4, foreach=False)


def ours(make: Callable[[float], wn.Noise], memory: Literal["keep", "recompute"]) -> Contender:
    """weightnoise with a law of a strength."""

    def contender(workload: Workload, model: nn.Module, std: float) -> Step:
        return plain_step(workload, wn.add_weight_noise(model, make(std), memory=memory))

    return contender


def absmax(std: float) -> wn.Noise:
    """Relative to the largest weight."""
    return wn.Gaussian(std, relative_to="absmax")


WAYS: dict[str, Contender] = {
    "plain": contenders.plain,
    "Gaussian, keep": ours(wn.Gaussian, "keep"),
    "Gaussian, recompute": ours(wn.Gaussian, "recompute"),
    "Gaussian relative to absmax, keep": ours(absmax, "keep"),
    "Gaussian relative to absmax, recompute": ours(absmax, "recompute"),
    "Uniform, keep": ours(wn.Uniform, "keep"),
    "Uniform, recompute": ours(wn.Uniform, "recompute"),
    "DropConnect, keep": ours(wn.DropConnect, "keep"),
    "DropConnect, recompute": ours(wn.DropConnect, "recompute"),
    "naive parametrization": contenders.naive_parametrization,
    "functional_call": contenders.functional,
    "copy and restore": contenders.copy_and_restore,
    ".data add and restore": contenders.data_add_and_restore,
}


def peak(make: Contender, layers: int, width: int) -> float:
    """Peak memory in MiB of this process, which does a few steps."""
    task = workload(layers, width)
    step = make(task, task.model(), 0.01)
    for _ in range(3):
        step()
    return high_water()


def high_water() -> float:
    """The most memory that this process has had so far, in MiB."""
    # Not resource.getrusage, whose peak may be that of the process that has started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def run(options: Options, layers: int = LAYERS, width: int = WIDTH, ways: Iterable[str] = WAYS) -> list[Row]:
    """A row for each way; ``matrices`` is what it takes on top of the plain step, in weight matrices."""
    peaks = {}
    for way in dict.fromkeys(["plain", *ways]):
        options.progress(f"memory: {way}")
        sizes = ["--layers", str(layers), "--width", str(width), "--threads", str(options.threads)]
        command = [sys.executable, "-m", "tests.benchmarks.memory", "--way", way, *sizes]
        peaks[way] = float(processes.run(command, 600, processes.TRIMMED))
    return [extra(way, peaks, layers, width) for way in peaks]


def extra(way: str, peaks: dict[str, float], layers: int, width: int) -> Row:
    """A peak less that of the plain step; ``share`` is of the memory of all weights."""
    more, one = peaks[way] - peaks["plain"], width**2 * 4 / 2**20
    sizes = {"layers": layers, "width": width, "mib": short(more)}
    return {"contender": way, **sizes, "matrices": short(more / one), "share": short(more / one / layers)}


def table(rows: Sequence[Row]) -> str:
    """Extra memory: in MiB, in matrices, and as a share of all weights."""
    lines = [
        [row["contender"], f"{row['mib']:.0f}", f"{row['matrices']:.1f}", f"{row['share']:.2f}"]
        for row in rows
        if row["contender"] != "plain"
    ]
    head = f"{rows[0]['layers']} x Linear({rows[0]['width']})"
    return markdown([head, "extra, MiB", "in weight matrices", "/ all weights"], lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The peak of one way, for `run`."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory", description=main.__doc__)
    parser.add_argument("--way", choices=list(WAYS), required=True)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    sys.stdout.write(f"{peak(WAYS[options.way], options.layers, options.width)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
