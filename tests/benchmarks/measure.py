"""Interleaved timing: every contender in every round, in shuffled order, compared round by round."""

from __future__ import annotations

import copy
import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from tests.benchmarks.contenders import CONTENDERS, Step
from tests.benchmarks.workloads import WORKLOADS


@dataclass(frozen=True)
class Result:
    """One contender on one workload.

    Attributes:
        milliseconds: median time of a step.
        ratio: median over rounds of its time over that of the plain step in the same round.
        quartiles: of these ratios: how far to trust their median.
        times: milliseconds of a step, round by round.
    """

    workload: str
    contender: str
    milliseconds: float
    ratio: float
    quartiles: tuple[float, float]
    times: list[float]

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def steps_for(workload: str, contenders: Sequence[str], std: float) -> dict[str, Step]:
    """One step for each contender, on copies of one model and with one batch."""
    torch.manual_seed(0)
    model = WORKLOADS[workload].model()
    return {name: CONTENDERS[name](WORKLOADS[workload], copy.deepcopy(model), std) for name in contenders}


def measure(
    workload: str, contenders: Sequence[str], seconds: float, progress: Callable[[str], None]
) -> list[Result]:
    """Time the contenders for about ``seconds``; the plain step is always among them."""
    names = list(dict.fromkeys(["plain", *contenders]))
    steps = steps_for(workload, names, std=0.01)
    for step in steps.values():
        for _ in range(3):
            step()
    # A round of a short step is several steps: the clock and the change of contender cost too.
    repeat = max(1, int(0.002 / statistics.median(_time(steps["plain"], 1) for _ in range(5))))
    times: dict[str, list[float]] = {name: [] for name in names}
    order, shuffled = names.copy(), random.Random(0)
    end = time.perf_counter() + seconds
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        while time.perf_counter() < end or len(times["plain"]) < 5:
            shuffled.shuffle(order)
            for name in order:
                times[name].append(_time(steps[name], repeat))
            progress(f"{workload}: {len(times['plain'])} rounds")
    finally:
        if collecting:
            gc.enable()
    return [_result(workload, name, times[name], times["plain"]) for name in names]


def _time(step: Step, repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        step()
    return (time.perf_counter() - start) / repeat


def _result(workload: str, name: str, times: Sequence[float], plain: Sequence[float]) -> Result:
    ratios = [mine / base for mine, base in zip(times, plain, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    milliseconds = [1e3 * each for each in times]
    return Result(workload, name, statistics.median(milliseconds), middle, (low, high), milliseconds)
