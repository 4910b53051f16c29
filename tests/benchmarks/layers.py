"""How the cost of a call that goes through a model grows with its layers."""

from __future__ import annotations

import contextlib
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

import weightnoise as wn
from tests.benchmarks.measure import Row, no_collection, short
from tests.benchmarks.options import Options, markdown

SIZES = (1_000, 16_000)
KEYS = 1_000  # In a long spec: all but the last are names of a layer.


def model_of(layers: int) -> nn.Module:
    """A chain of small layers."""
    return nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(layers)))


def long_spec(model: nn.Module) -> Any:
    """The names of some layers, and a pattern for the others."""
    names = [name for name, _ in model.named_parameters()]
    return {**dict.fromkeys(names[: min(KEYS, len(names)) - 1], 0.1), "*": 0.2}


def entered(context: AbstractContextManager[object]) -> None:
    """Open a context and close it."""
    with context:
        pass


# In this order: what comes after ``add`` is on a noisy model, and ``remove`` leaves it plain for the next round.
CALLS: dict[str, Callable[[nn.Module], object]] = {
    "plan": lambda model: wn.plan_weight_noise(model, 0.1),
    "plan, 1,000 keys": lambda model: wn.plan_weight_noise(model, long_spec(model)),
    "add, 1,000 keys": lambda model: wn.add_weight_noise(model, long_spec(model)),
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
    """A row for each call, number of layers, and with the collector of garbage or without: microseconds a layer.

    They are of the processor. The collector works as it does for a user; what it adds to a call is its passes over
    what the call makes, and now and then over all that there is. A round goes through the small model as often as
    it takes to meet as many layers as the large one has.
    """
    models = {size: model_of(size) for size in sizes}
    found: dict[tuple[str, int, bool], list[float]] = {}
    end, rounds = time.perf_counter() + options.seconds, 0
    while time.perf_counter() < end or not rounds:
        rounds += 1
        options.progress(f"round {rounds}")
        for collected, (size, model) in itertools.product((True, False), models.items()):
            for name, each in _round(model, max(sizes) // size, collected).items():
                found.setdefault((name, size, collected), []).append(1e6 * each / size)
    return [
        {
            "call": name,
            "layers": size,
            "collected": collected,
            "us": short(statistics.median(times)),
            "rounds": rounds,
        }
        for (name, size, collected), times in found.items()
    ]


def _round(model: nn.Module, repeat: int, collected: bool) -> dict[str, float]:
    """Mean seconds of the processor of each call."""
    spent = dict.fromkeys(CALLS, 0.0)
    with contextlib.nullcontext() if collected else no_collection():
        for _ in range(repeat):
            for name, call in CALLS.items():
                start = time.process_time()
                call(model)
                spent[name] += time.process_time() - start
    return {name: seconds / repeat for name, seconds in spent.items()}


def table(rows: Sequence[Row]) -> str:
    """Microseconds a layer, and how much more they are in the largest model than in the smallest."""
    found = {(row["call"], row["layers"], row["collected"]): row["us"] for row in rows}
    sizes = sorted({row["layers"] for row in rows})

    def ratio(name: str, collected: bool) -> str:
        return f"{found[name, sizes[-1], collected] / found[name, sizes[0], collected]:.2f}"

    lines = [
        [name, *(f"{found[name, size, True]:.1f}" for size in sizes), ratio(name, True), ratio(name, False)]
        for name in dict.fromkeys(row["call"] for row in rows)
    ]
    heads = [f"{size:,} layers, us each" for size in sizes]
    return markdown(["call", *heads, "ratio", "without the collector"], lines)
