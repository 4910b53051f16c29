"""The commands over several processes and machines: worker processes, and shards."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from weightnoise._cli.load import load_metric, load_model
from weightnoise._cli.terminal import CommandError
from weightnoise._robustness.plan import Plan


@contextmanager
def executor(options: argparse.Namespace) -> Iterator[Executor | None]:
    """As many worker processes as ``--jobs`` says; None for one."""
    if options.jobs == 1:
        yield None
        return
    # Spawned: forks of a process that has computed on threads may hang, and have no CUDA.
    context = multiprocessing.get_context("spawn")
    names = (options.model, options.metric, options.seed)
    with ProcessPoolExecutor(options.jobs, mp_context=context, initializer=load_again, initargs=names) as made:
        yield made


def load_again(model: str, metric: str, seed: int) -> None:
    """Import what the command has named, as it did: random data that the modules make are the same."""
    load_model(model, seed=seed)
    load_metric(metric)


def of_shard(plan: Plan, shard: tuple[int, int] | None) -> Plan:
    """The draws of one of many commands that share them out.

    Each takes every n-th draw, or pair of mirrored ones: with more draws it has those that it had, and more.
    """
    if shard is None:
        return plan
    place, count = shard
    size = 2 if plan.antithetic else 1
    numbers = tuple(number for number in plan.numbers if number // size % count == place - 1)
    if not numbers:
        raise CommandError(f"--shard {place}/{count} has none of the {len(plan.numbers)} draws: give fewer shards")
    return replace(plan, numbers=numbers)
