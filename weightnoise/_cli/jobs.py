"""The commands over several processes and machines: worker processes, shards, and reports put together."""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weightnoise._cli.files import locked, read_text, try_to_write, write_whole
from weightnoise._cli.load import load_metric, load_model
from weightnoise._cli.output import CommandError, say
from weightnoise._errors import WeightNoiseError
from weightnoise._robustness.merging import config, differing
from weightnoise._robustness.report import RobustnessReport


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


def run_merge(options: argparse.Namespace) -> None:
    """Run the command ``weightnoise merge``."""
    if options.out is not None:
        try_to_write(options.out)
    parts = {path: _read(path) for path in options.reports}
    (first, (mine, _)), *others = parts.items()
    for path, (report, _) in others:
        if differences := differing(config(mine), config(report)):
            raise CommandError(f"{first} and {path} do not belong together: {', '.join(differences)}", code=1)
    try:
        merged = mine.merge(*(report for _, (report, _) in others))
    except WeightNoiseError as error:
        raise CommandError(f"{' '.join(map(str, options.reports))}: {error}", code=1) from None
    print(merged)
    shards = [tuple(sweep["shard"]) for _, sweep in parts.values() if sweep.get("shard")]
    missing = [
        f"{place}/{count}"
        for count in {of for _, of in shards}
        for place in range(1, count + 1)
        if (place, count) not in shards
    ]
    if missing:
        say(f"shards that are missing: {', '.join(missing)}")
    if options.out is not None:
        with locked(options.out):
            write_whole(options.out, json.dumps(merged.to_dict(), indent=1))
        print(f"Report: {options.out}")


def _read(path: Path) -> tuple[RobustnessReport, dict[str, Any]]:
    """A report, and the settings of the sweep that has written it."""
    try:
        content = json.loads(read_text(path))
        if isinstance(content, dict) and "measured" in content:
            raise CommandError(f"{path} is not finished: give its command again, and merge then", code=1)
        return RobustnessReport.from_dict(content), content.get("sweep", {})
    except (RecursionError, ValueError) as error:
        raise CommandError(f"{path} holds no report: {error}", code=1) from None
