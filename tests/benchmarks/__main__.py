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


def machine() -> dict[str, str | int]:
    """What the figures are measured on."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def heading(on: dict[str, str | int]) -> str:
    """What the figures are."""
    return (
        f"Step time divided by that of the plain step, in one interleaved run; medians. {on['processor']}, "
        f"{on['threads']} threads, torch {on['torch']}, Python {on['python']}."
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
        _progress(workload, lasting=True)
        results += measure(workload, options.contenders, options.seconds, _progress)
    _progress("")
    text = f"{heading(machine())}\n\n{table(results)}\n"
    sys.stdout.write(text)
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        everything = {"machine": machine(), "results": [result.to_dict() for result in results]}
        options.json.write_text(json.dumps(everything) + "\n")
    return 0


def _progress(text: str, *, lasting: bool = False) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
    elif lasting:
        sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
