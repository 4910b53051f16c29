"""Interleaved timing: every contender in every round, in shuffled order, compared round by round."""

from __future__ import annotations

import copy
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch

from tests.benchmarks.contenders import CONTENDERS, Contender, Step
from tests.benchmarks.workloads import Workload

Row: TypeAlias = dict[str, Any]
Progress: TypeAlias = Callable[[str], None]
Times: TypeAlias = dict[str, list[float]]

_LEAST_ROUNDS = 5
_ROUND = 0.002  # Seconds: a round of a short step is several steps, as the clock and the change cost too.


def interleave(
    steps: Mapping[str, Step],
    seconds: float,
    progress: Progress,
    first: str = "plain",
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Seconds of a step in every round, by a clock, for about ``seconds`` after warming up."""
    for step in steps.values():
        for _ in range(2):
            step()
    repeat = max(1, int(_ROUND / statistics.median(_time(steps[first], 1, clock) for _ in range(3))))
    times: Times = {name: [] for name in steps}
    order, shuffled = list(steps), random.Random(0)
    end = time.perf_counter() + seconds
    with no_collection():
        while time.perf_counter() < end or len(times[first]) < _LEAST_ROUNDS:
            shuffled.shuffle(order)
            for name in order:
                times[name].append(_time(steps[name], repeat, clock))
            progress(f"{len(times[first])} rounds")
    return times


def against(times: Times, name: str, base: str = "plain") -> Row:
    """One contender in numbers.

    ``milliseconds`` is the median time of a step. ``ratio`` is the median over rounds of its time over that of
    ``base`` in the same round, ``quartiles`` tell how far to trust it, and ``extra`` is the median difference in
    milliseconds.
    """
    pairs = list(zip(times[name], times[base], strict=True))
    low, middle, high = statistics.quantiles([mine / other for mine, other in pairs], n=4)
    return {
        "contender": name,
        "milliseconds": short(1e3 * statistics.median(times[name])),
        "ratio": short(middle),
        "quartiles": [short(low), short(high)],
        "extra": short(1e3 * statistics.median(mine - other for mine, other in pairs)),
        "rounds": len(pairs),
    }


def short(number: float) -> float:
    """Five digits: more than the clock is good for."""
    return float(f"{number:.5g}")


def steps_for(
    workload: Workload, contenders: Sequence[str], std: float = 0.01, ways: Mapping[str, Contender] = CONTENDERS
) -> dict[str, Step]:
    """One step for each contender, on copies of one model and with one batch; the plain step comes first."""
    torch.manual_seed(0)
    model = workload.model()
    names = dict.fromkeys(["plain", *contenders])
    return {name: ways[name](workload, copy.deepcopy(model), std) for name in names}


def compare(workload: Workload, contenders: Sequence[str], seconds: float, progress: Progress) -> list[Row]:
    """The contenders on a workload, a row each."""
    times = interleave(steps_for(workload, contenders), seconds, progress)
    return [against(times, name) for name in times]


def _time(step: Step, repeat: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeat):
        step()
    return (clock() - start) / repeat


@contextmanager
def no_collection() -> Iterator[None]:
    """Collect garbage first, and not again before the end."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
