"""What runs in a worker: the model arrives once, and its draws are those of the process that asks for them."""

from __future__ import annotations

import importlib.util
import os
import pickle
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from weightnoise._errors import OptionError
from weightnoise._robustness.cells import Cell, Found, measured, noisy
from weightnoise._robustness.plan import Plan, metric_name
from weightnoise._torch.modules import state_kept

_here = threading.local()  # What this thread of a worker has been sent: one model, that of the latest evaluation.


@dataclass(frozen=True)
class Package:
    """What a worker needs, pickled.

    Attributes:
        parts: the model, the metric and the plan.
    """

    parts: tuple[bytes, bytes, bytes]


@dataclass(frozen=True)
class Task:
    """Some draws of a cell.

    Attributes:
        token: of the evaluation that it belongs to.
        home: the process that has asked.
        workers: how many there are, to share the cores.
        forked: whether the workers are forks, in which torch must not compute on several threads.
    """

    token: str
    home: int
    workers: int
    forked: bool
    cell: Cell
    numbers: tuple[int, ...]


def pack(model: nn.Module, plan: Plan) -> Package:
    """Pickle what a worker needs.

    Raises:
        OptionError: if something cannot be pickled, with its name.
    """
    bare = Plan(
        _nothing, {}, (), plan.numbers, plan.seed, plan.antithetic, recalibrate=plan.recalibrate, reads=plan.reads
    )
    metric = f"metric {metric_name(plan.metric)}"
    model_kind = f"model {type(model).__name__}"
    parts = _pickled(model, model_kind), _pickled(plan.metric, metric), _pickled(bare, "loader of recalibrate=...")
    return Package(parts)


def _nothing(model: Any) -> float:
    return 0.0


def _pickled(value: Any, what: str) -> bytes:
    try:
        if importlib.util.find_spec("cloudpickle") is not None:
            import cloudpickle

            return bytes(cloudpickle.dumps(value))
        return pickle.dumps(value)
    except Exception as error:
        raise OptionError(
            f"The {what} cannot be sent to other processes: {error}. Define it at the top level of a module, "
            "without "
            "open files, locks or lambdas in it, or pip install cloudpickle; or leave executor=... out."
        ) from error


def ready() -> None:
    """Whether a worker answers."""


def work(task: Task, package: Package | None) -> list[Found] | None:
    """What the metric finds in the draws of a task; None if this worker has not been sent the model yet."""
    if package is not None:
        model, metric, plan = map(pickle.loads, package.parts)
        _here.token, _here.loaded = task.token, (model, Plan(**{**vars(plan), "metric": metric}))
    if getattr(_here, "token", None) != task.token:
        return None
    model, plan = _here.loaded
    before = torch.get_num_threads()
    elsewhere = os.getpid() != task.home
    if elsewhere:
        torch.set_num_threads(1 if task.forked else max(1, min(before, cores() // task.workers)))
    try:
        with state_kept(model), noisy(model, task.cell):
            return list(measured(model, plan, task.cell, task.numbers))
    finally:
        if elsewhere:
            torch.set_num_threads(before)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chunks(numbers: Sequence[int], workers: int, pairs: bool) -> list[tuple[int, ...]]:
    """Draws shared out: some pieces for each worker, so that none waits long for another at the end."""
    size = max(1, len(numbers) // (4 * workers))
    if pairs:
        size += size % 2
    return [tuple(numbers[start : start + size]) for start in range(0, len(numbers), size)]
