"""torch.compile: what noise costs a compiled model, beside what it costs the same model uncompiled."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from torch import nn
from torch._dynamo.utils import counters

import weightnoise as wn
from tests.benchmarks.contenders import Step, naive, plain_step
from tests.benchmarks.measure import Progress, Row, against, interleave, short
from tests.benchmarks.options import Options, markdown
from tests.benchmarks.workloads import WORKLOADS, Workload

STD = 0.01


def on(model: nn.Module) -> Step | None:
    """Noise on the weights."""
    wn.add_weight_noise(model, STD)
    return None


def scheduled(model: nn.Module) -> Step:
    """Another strength in every step."""
    return wn.NoiseScheduler(wn.add_weight_noise(model, STD), wn.linear_ramp(100_000)).step


def held(model: nn.Module) -> Step | None:
    """One draw for all steps."""
    wn.hold_noise(wn.add_weight_noise(model, STD), seed=0).__enter__()
    return None


def activations(model: nn.Module) -> Step | None:
    """Noise on the outputs of all layers with weights."""
    wn.add_activation_noise(model, STD)
    return None


def by_hand(model: nn.Module) -> Step | None:
    """A dozen lines on torch's parametrize."""
    naive(model, STD)
    return None


# What is done to the model; and before each of its steps, if anything.
NOISY: dict[str, Callable[[nn.Module], Step | None]] = {
    "weightnoise on": on,
    "weightnoise, schedule": scheduled,
    "weightnoise, hold": held,
    "weightnoise, activations": activations,
    "naive parametrization": by_hand,
}
WAYS: dict[str, Callable[[nn.Module], Step | None]] = {"plain": lambda model: None, **NOISY}


def run(options: Options) -> list[Row]:
    """A row for each workload and contender; where a model does not compile, one with the reason."""
    rows = []
    for name in options.trained:
        try:
            with fresh_cache():
                found = compare_compiled(WORKLOADS[name], options.seconds, options.about(name))
        except Exception as error:  # What a compiler raises is not to be foreseen, and the other models go on.
            found = [{"contender": each, "error": f"{type(error).__name__}: {error}"[:200]} for each in NOISY]
        rows += [{"workload": name, **row} for row in found]
    return rows


@contextmanager
def fresh_cache() -> Iterator[None]:
    """Compile everything: with the cache of an earlier run it would take no time."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
        yield


def compare_compiled(workload: Workload, seconds: float, progress: Progress) -> list[Row]:
    """All contenders, uncompiled and compiled, in the same rounds."""
    torch.compiler.reset()
    torch.compile(nn.Linear(2, 2))(torch.ones(1, 2))  # What is loaded or built but once.
    steps = {name: step_of(workload, name) for name in WAYS}
    waited, graphs = {}, {}
    for name in WAYS:
        progress(f"compiling {name}")
        counters.clear()
        start = time.perf_counter()
        step = steps[f"{name}, compiled"] = step_of(workload, name, compiled=True)
        for _ in range(3):
            step()
        waited[name] = short(time.perf_counter() - start)
        graphs[name] = counters["stats"]["unique_graphs"]
    times = interleave(steps, seconds, progress)
    rows = []
    for name in WAYS:
        row, quick = against(times, name), against(times, f"{name}, compiled", "plain, compiled")
        row |= {"compiled": quick["ratio"], "compiled_quartiles": quick["quartiles"]}
        row |= {"compiled_milliseconds": quick["milliseconds"], "compile_seconds": waited[name]}
        rows.append(row | {"graphs": graphs[name]})
    return rows


def step_of(workload: Workload, name: str, *, compiled: bool = False) -> Step:
    """The contender's step, with its model compiled or not; what comes before a step is not compiled."""
    torch.manual_seed(0)
    model = workload.model()
    before = WAYS[name](model)
    step = plain_step(workload, model, torch.compile(model, dynamic=False) if compiled else model)
    if before is None:
        return step

    def both() -> None:
        before()
        step()

    return both


def table(rows: Sequence[Row]) -> str:
    """Ratios uncompiled and compiled, their difference, and what compiling took, that of the plain model too."""
    plain = {row["workload"]: row for row in rows if row["contender"] == "plain"}
    lines = []
    for row in rows:
        name, base = [row["workload"], row["contender"]], plain.get(row["workload"])
        if base is None:
            lines.append([*name, row["error"], "", "", "", ""])
        elif row is not base:
            ratios = [f"{row['ratio']:.2f}", f"{row['compiled']:.2f}", f"{row['compiled'] - row['ratio']:+.2f}"]
            times = f"{row['compile_seconds']:.0f} ({row['compile_seconds'] / base['compile_seconds']:.1f})"
            lines.append([*name, *ratios, f"{row['graphs']} ({base['graphs']})", times])
    return markdown(
        ["workload", "contender", "uncompiled", "compiled", "difference", "graphs", "seconds to compile"], lines
    )
