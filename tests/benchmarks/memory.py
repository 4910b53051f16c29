"""What noise adds to the peak memory of a training step: each figure is the peak of a process of its own.

Gradients are kept between steps and the optimizer needs no memory, so that nothing hides what noise takes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import nn

import weightnoise as wn
from tests.benchmarks import contenders
from tests.benchmarks.contenders import Contender, Step, plain_step
from tests.benchmarks.measure import Row, short
from tests.benchmarks.options import Options, markdown
from tests.benchmarks.peaks import LAYERS, WIDTH, peaks, tell
from tests.benchmarks.workloads import Workload, labels

BATCH = 32


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


def steps(make: Contender, layers: int, width: int) -> None:
    """A few steps."""
    task = workload(layers, width)
    step = make(task, task.model(), 0.01)
    for _ in range(3):
        step()


def work(way: str, layers: int, width: int) -> None:
    """What the process of a way does."""
    steps(WAYS[way], layers, width)


def run(options: Options, layers: int = LAYERS, width: int = WIDTH, ways: Iterable[str] = WAYS) -> list[Row]:
    """A row for each way; ``matrices`` is what it takes on top of the plain step, in weight matrices."""
    found = peaks("memory", dict.fromkeys(["plain", *ways]), layers, width, options)
    return [extra(way, found, layers, width) for way in found]


def extra(way: str, found: dict[str, float], layers: int, width: int) -> Row:
    """A peak less that of the plain step; ``share`` is of the memory of all weights."""
    more, one = found[way] - found["plain"], width**2 * 4 / 2**20
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


if __name__ == "__main__":
    sys.exit(tell(work, WAYS))
