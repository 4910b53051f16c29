"""``python -m tests.benchmarks``: run, print Markdown tables, and write them, JSON and figures on request."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import record as records
from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.options import Options
from tests.benchmarks.peers.environments import REQUIREMENTS
from tests.benchmarks.record import Record
from tests.benchmarks.sections import ON_REQUEST, SECTIONS
from tests.benchmarks.workloads import WORKLOADS


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    many: dict[str, Any] = {"nargs": "*", "metavar": "NAME"}
    usual = [name for name in SECTIONS if name not in ON_REQUEST]
    about = f"of {', '.join(SECTIONS)} (default: all but {', '.join(ON_REQUEST)})"
    made.add_argument("--sections", **many, default=usual, choices=list(SECTIONS), help=about)
    made.add_argument("--seconds", type=float, default=10.0, help="time for each comparison (default: 10)")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--workloads", **many, default=list(WORKLOADS), choices=list(WORKLOADS))
    made.add_argument("--contenders", **many, default=list(CONTENDERS), choices=list(CONTENDERS))
    made.add_argument("--peers", type=Path, default=Options.peers, help="the folder of the peers' environments")
    made.add_argument("--names", **many, default=list(REQUIREMENTS), choices=list(REQUIREMENTS), help="of peers")
    made.add_argument("--json", type=Path, help="write results to this file; those of other sections in it stay")
    made.add_argument("--markdown", type=Path, help="write tables between the marks of this page, or make it")
    made.add_argument("--plots", type=Path, help="draw figures into this folder")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    given = parser().parse_args(argv)
    torch.set_num_threads(given.threads)
    options = Options(
        seconds=given.seconds,
        threads=given.threads,
        workloads=given.workloads,
        contenders=given.contenders,
        peers=given.peers.resolve(),
        names=given.names,
        progress=_progress,
    )
    record = records.read(given.json)
    failed = [name for name in given.sections if not _run(name, options, record, given.json)]
    _progress("")
    texts = records.blocks(record)
    sys.stdout.write(records.fill(records.blank(texts), texts))
    if given.markdown:
        page = given.markdown.read_text() if given.markdown.exists() else records.blank(texts)
        given.markdown.write_text(records.fill(page, texts))
    if given.plots:
        from tests.benchmarks.plots import draw_all  # Only a run that draws needs matplotlib.

        draw_all(record, given.plots)
    return 1 if failed else 0


def _run(name: str, options: Options, record: Record, path: Path | None) -> bool:
    """Run a section and write what it found at once; its failure is told and takes nothing from the others."""
    _progress(name, lasting=True)
    try:
        start = time.monotonic()
        rows = SECTIONS[name].run(options)
        record[name] = records.entry(rows, options.seconds, time.monotonic() - start)
    except Exception:  # Whatever it is, the other sections go on.
        sys.stderr.write(f"{name} failed:\n{traceback.format_exc()}")
        return False
    if path:
        records.write(record, path)
    return True


def _progress(text: str, *, lasting: bool = False) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
    elif lasting:
        sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
