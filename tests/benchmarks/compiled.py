"""torch.compile: what noise costs a compiled model, beside what it costs the same model uncompiled."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from torch._dynamo.utils import counters

from tests.benchmarks.contenders import CONTENDERS, Step, plain_step
from tests.benchmarks.measure import Progress, Row, against, interleave, short, steps_for
from tests.benchmarks.options import Options, markdown
from tests.benchmarks.workloads import WORKLOADS, Workload

NOISY = ("weightnoise on", "naive parametrization")
NAMES = ("plain", *NOISY)


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
    steps = steps_for(workload, NAMES)
    waited, graphs = {}, {}
    for name in NAMES:
        progress(f"compiling {name}")
        counters.clear()
        start = time.perf_counter()
        steps[f"{name}, compiled"] = compiled_step(workload, name)
        waited[name] = short(time.perf_counter() - start)
        graphs[name] = counters["stats"]["unique_graphs"]
    times = interleave(steps, seconds, progress)
    rows = []
    for name in NAMES:
        row, quick = against(times, name), against(times, f"{name}, compiled", "plain, compiled")
        row |= {"compiled": quick["ratio"], "compiled_quartiles": quick["quartiles"]}
        row |= {"compiled_milliseconds": quick["milliseconds"], "compile_seconds": waited[name]}
        rows.append(row | {"graphs": graphs[name]})
    return rows


def compiled_step(workload: Workload, name: str) -> Step:
    """The contender's step with its model compiled, after the steps that compile it."""
    torch.manual_seed(0)
    model = workload.model()
    CONTENDERS[name](workload, model, 0.01)  # For what it does to the model; its step is not compiled.
    step = plain_step(workload, model, torch.compile(model, dynamic=False))
    for _ in range(3):
        step()
    return step


def table(rows: Sequence[Row]) -> str:
    """Ratios uncompiled and compiled, their difference, and the number of graphs, that of the plain model too."""
    plain = {row["workload"]: row["graphs"] for row in rows if row["contender"] == "plain"}
    lines = []
    for row in rows:
        name = [row["workload"], row["contender"]]
        if "error" in row:
            lines.append([*name, row["error"], "", "", "", ""])
        elif row["contender"] != "plain":
            ratios = [f"{row['ratio']:.2f}", f"{row['compiled']:.2f}", f"{row['compiled'] - row['ratio']:+.2f}"]
            graphs = f"{row['graphs']} ({plain[row['workload']]})"
            lines.append([*name, *ratios, graphs, f"{row['compile_seconds']:.0f}"])
    return markdown(
        ["workload", "contender", "uncompiled", "compiled", "difference", "graphs", "seconds to compile"], lines
    )
