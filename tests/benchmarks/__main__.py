"""``python -m tests.benchmarks``: run, print a Markdown table, and write it and JSON on request."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.measure import Result, measure
from tests.benchmarks.workloads import WORKLOADS


def processor() -> str:
    """The processor's name, as well as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(results: Sequence[Result]) -> str:
    """A row a workload, a column a contender, ratios to the plain step."""
    workloads = list(dict.fromkeys(result.workload for result in results))
    contenders = [name for name in dict.fromkeys(result.contender for result in results) if name != "plain"]
    found = {(result.workload, result.contender): result for result in results}
    lines = ["| workload | plain, ms | " + " | ".join(contenders) + " |", "|---|" + "---|" * (len(contenders) + 1)]
    for workload in workloads:
        cells = [f"{found[workload, 'plain'].milliseconds:.2f}"]
        cells += [f"{found[workload, name].ratio:.2f}" for name in contenders]
        lines.append(f"| {workload} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def heading(threads: int) -> str:
    """What the figures were measured on."""
    return (
        f"Step time divided by that of the plain step, in one interleaved run; medians. {processor()}, "
        f"{threads} threads, torch {torch.__version__}, Python {platform.python_version()}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each workload (default: 20)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS), choices=list(WORKLOADS), metavar="NAME")
    parser.add_argument(
        "--contenders", nargs="*", default=list(CONTENDERS), choices=list(CONTENDERS), metavar="NAME"
    )
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    results: list[Result] = []
    for workload in options.workloads:
        results += measure(workload, options.contenders, options.seconds, _progress)
    _progress("")
    text = f"{heading(options.threads)}\n\n{table(results)}\n"
    sys.stdout.write(text)
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        options.json.write_text(json.dumps([result.to_dict() for result in results], indent=1))
    return 0


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
