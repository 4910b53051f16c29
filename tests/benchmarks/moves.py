"""A step of zeroth-order training without its forwards: the weights go to one side, to the other, and on.

The peak of each way is that of a process of its own, less that of one that moves nothing.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import nn

import weightnoise as wn
from tests.benchmarks.measure import Row, against, interleave, short
from tests.benchmarks.options import Options, markdown
from tests.benchmarks.peaks import LAYERS, WIDTH, peaks, tell

STD, STEP = 0.01, 0.001  # A draw, and the part of it that the step goes on.
TIMED = 1000  # The width for the clock: as large as fits many rounds.

Look: TypeAlias = Callable[[], None]
Way: TypeAlias = Callable[[nn.Sequential, Look], Callable[[int], None]]


def matrices(layers: int, width: int) -> nn.Sequential:
    """Square matrices, as many as asked for."""
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))


def no_move(model: nn.Sequential, look: Look) -> Callable[[int], None]:
    """The forwards see the clean weights."""

    def step(seed: int) -> None:
        look()
        look()

    return step


def ours(model: nn.Sequential, look: Look) -> Callable[[int], None]:
    """`step_along`, three times."""
    wn.add_weight_noise(model, STD)

    def step(seed: int) -> None:
        with wn.no_noise(model):
            wn.step_along(model, seed, 1.0)
            look()
            wn.step_along(model, seed, -2.0)
            look()
        wn.step_along(model, seed, 1.0 - STEP)

    return step


def clone_and_add(model: nn.Sequential, look: Look) -> Callable[[int], None]:
    """The textbook: a copy of the weights, and the direction."""
    weights = list(model.parameters())

    @torch.no_grad()
    def step(seed: int) -> None:
        torch.manual_seed(seed)
        clean = [weight.clone() for weight in weights]
        direction = [torch.randn_like(weight) for weight in weights]
        for amount in (STD, -STD, -STD * STEP):
            for weight, start, z in zip(weights, clean, direction, strict=True):
                torch.add(start, z, alpha=amount, out=weight)
            if amount != -STD * STEP:
                look()

    return step


def draw_again(model: nn.Sequential, look: Look) -> Callable[[int], None]:
    """As the authors of MeZO do: the direction is drawn again, matrix by matrix, for each of the three."""
    weights = list(model.parameters())

    def move(seed: int, amount: float) -> None:
        torch.manual_seed(seed)
        for weight in weights:
            weight.add_(torch.randn_like(weight), alpha=amount)

    @torch.no_grad()
    def step(seed: int) -> None:
        move(seed, STD)
        look()
        move(seed, -2 * STD)
        look()
        move(seed, STD * (1.0 - STEP))

    return step


WAYS: dict[str, Way] = {
    "no move": no_move,
    "step_along": ours,
    "clone and add": clone_and_add,
    "draw again from a seed": draw_again,
}


def run(options: Options, layers: int = LAYERS, width: int = WIDTH) -> list[Row]:
    """A row for each way: its time at a width of `TIMED`, and its peak on top of moving nothing."""
    timed = min(TIMED, width)
    steps = {name: functools.partial(way(matrices(layers, timed), lambda: None), 0) for name, way in WAYS.items()}
    times = interleave(steps, options.seconds, options.about("moves"), first="clone and add")
    found = peaks("moves", WAYS, layers, width, options)
    one = width**2 * 4 / 2**20
    return [
        against(times, way, "clone and add")
        | {"layers": layers, "timed": timed, "width": width, "mib": short(more), "matrices": short(more / one)}
        for way, more in ((way, found[way] - found["no move"]) for way in WAYS)
    ]


def table(rows: Sequence[Row]) -> str:
    """Time of a step, and what it takes in memory."""
    first = rows[0]
    heads = [
        f"{first['layers']} matrices",
        f"{first['timed']} wide: ms",
        "/ clone and add",
        f"{first['width']} wide: extra, MiB",
        "in weight matrices",
    ]
    lines = [
        [
            row["contender"],
            f"{row['milliseconds']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['mib']:.0f}",
            f"{row['matrices']:.1f}",
        ]
        for row in rows
        if row["contender"] != "no move"
    ]
    return markdown(heads, lines)


def work(way: str, layers: int, width: int) -> None:
    """What the process of a way does."""
    step = WAYS[way](matrices(layers, width), lambda: None)
    for seed in range(3):
        step(seed)


if __name__ == "__main__":
    sys.exit(tell(work, WAYS))
