"""The commands over several processes and machines: worker processes, and shards."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager

from weightnoise._cli.load import load_metric, load_model
from weightnoise._cli.output import CommandError


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


def of_shard(draws: int, shard: tuple[int, int] | None, antithetic: bool) -> int | range:
    """The draws of one of many commands that share them out."""
    if shard is None:
        return draws
    place, count = shard
    size = 2 if antithetic else 1
    start, stop = (number * (draws // size) // count * size for number in (place - 1, place))
    if start == stop:
        raise CommandError(f"--shard {place}/{count} has none of the {draws} draws: give fewer shards")
    return range(start, stop)
