"""Microseconds of what adds noise to a weight on a GPU, beside torch's generator."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from typing import Any

import torch

from tests.gpu.checks import need_gpu, need_triton

SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 24)
ROUNDS, REPEAT = 20, 20


def ways(count: int) -> dict[str, Callable[[], Any]]:
    """Each way to add noise to as many weights."""
    weight = torch.randn(count, device="cuda")
    out, key = torch.empty_like(weight), torch.tensor(5, device="cuda")
    found: dict[str, Callable[[], Any]] = {
        "clone": lambda: weight.clone(),
        "torch: randn, add": lambda: weight + 0.01 * torch.randn_like(weight),
        "torch: randn, add with alpha": lambda: torch.add(weight, torch.randn_like(weight), alpha=0.01),
    }
    kernel = need_triton()
    found["Triton"] = lambda: kernel.add_normal(out, weight, key, 0.01, None)
    return found


def timings() -> list[dict[str, Any]]:
    """The median of interleaved rounds for every size and way, and its ratio to torch's two operations."""
    need_gpu()
    rows = []
    for count in SIZES:
        steps = ways(count)
        times: dict[str, list[float]] = {name: [] for name in steps}
        for step in steps.values():
            step()
        for _ in range(ROUNDS):
            for name in random.sample(list(steps), len(steps)):
                times[name].append(_microseconds(steps[name]))
        base = statistics.median(times["torch: randn, add"])
        for name, found in times.items():
            middle = statistics.median(found)
            rows.append({"weights": count, "way": name, "microseconds": middle, "ratio": middle / base})
    return rows


def _microseconds(step: Callable[[], Any]) -> float:
    start: Any = torch.cuda.Event(enable_timing=True)
    end: Any = torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(REPEAT):
        step()
    end.record()
    torch.cuda.synchronize()
    elapsed: float = start.elapsed_time(end)
    return 1e3 * elapsed / REPEAT
