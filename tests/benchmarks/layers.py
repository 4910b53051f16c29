"""How the cost of a call that goes through a model grows with its layers."""

from __future__ import annotations

import copy
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

import weightnoise as wn
from tests.benchmarks.measure import Row, short
from tests.benchmarks.options import Options, markdown

SIZES = (1_000, 16_000)
KEYS = 1_000  # In a long spec: all but the last are names of a layer.
LIMIT = 1.5  # The ratio that no call should exceed.


def model_of(layers: int) -> nn.Module:
    """A chain of small layers."""
    return nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(layers)))


def long_spec() -> Any:
    """The names of some layers, and a pattern for the others."""
    return {**{f"{k}.weight": 0.1 for k in range(KEYS - 1)}, "*": 0.2}


def entered(context: AbstractContextManager[object]) -> None:
    """Open a context and close it."""
    with context:
        pass


# In this order: what comes after ``add`` is on a noisy model, and ``remove`` leaves it plain for the next round.
CALLS: dict[str, Callable[[nn.Module], object]] = {
    "plan": lambda model: wn.plan_weight_noise(model, 0.1),
    "plan, 1,000 keys": lambda model: wn.plan_weight_noise(model, long_spec()),
    "add, 1,000 keys": lambda model: wn.add_weight_noise(model, long_spec()),
    "remove, 1,000 keys": wn.remove_weight_noise,
    "add": lambda model: wn.add_weight_noise(model, 0.1),
    "no_noise": lambda model: entered(wn.no_noise(model)),
    "hold_noise": lambda model: entered(wn.hold_noise(model, seed=0)),
    "scale_noise": lambda model: entered(wn.scale_noise(model, 0.5)),
    "force_noise": lambda model: entered(wn.force_noise(model)),
    "deepcopy": copy.deepcopy,
    "remove": wn.remove_weight_noise,
}


def run(options: Options, sizes: Sequence[int] = SIZES) -> list[Row]:
    """A row for each call and number of layers: microseconds of the processor for each layer.

    Python collects garbage as it does for a user. A round goes through as many layers of small models as of the
    large one, and so long that the passes of the collector fall on both.
    """
    models = {size: model_of(size) for size in sizes}
    found: dict[tuple[str, int], list[float]] = {(name, size): [] for name in CALLS for size in sizes}
    end = time.perf_counter() + options.seconds
    rounds = 0
    while time.perf_counter() < end or not rounds:
        rounds += 1
        options.progress(f"round {rounds}")
        for size, model in models.items():
            gc.collect()
            for name, each in _round(model, max(sizes) // size).items():
                found[name, size].append(1e6 * each / size)
    return [
        {"call": name, "layers": size, "us": short(statistics.median(times)), "rounds": rounds}
        for (name, size), times in found.items()
    ]


def _round(model: nn.Module, repeat: int) -> dict[str, float]:
    """Mean seconds of the processor of each call."""
    spent = dict.fromkeys(CALLS, 0.0)
    for _ in range(repeat):
        for name, call in CALLS.items():
            start = time.process_time()
            call(model)
            spent[name] += time.process_time() - start
    return {name: seconds / repeat for name, seconds in spent.items()}


def table(rows: Sequence[Row]) -> str:
    """Microseconds for each layer, and how much more they are in the largest model."""
    found = {(row["call"], row["layers"]): row["us"] for row in rows}
    sizes = sorted({size for _, size in found})
    lines = [
        [
            name,
            *(f"{found[name, size]:.1f}" for size in sizes),
            f"{found[name, sizes[-1]] / found[name, sizes[0]]:.2f}",
        ]
        for name in dict.fromkeys(name for name, _ in found)
    ]
    return markdown(["call", *(f"us each of {size:,} layers" for size in sizes), "ratio"], lines)
