"""``python -m tests.gpu``: check all that needs a GPU, and write a report; without one, as far as that goes."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

import weightnoise as wn
from tests.gpu.checks import CHECKS, NotHereError
from tests.gpu.timings import timings

Row: TypeAlias = dict[str, Any]
TIMINGS = "timings"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    names = [*CHECKS, TIMINGS]
    made.add_argument("--only", nargs="*", metavar="CHECK", choices=names, default=names, help=", ".join(names))
    made.add_argument("--json", type=Path, help="write the report to this file")
    made.add_argument("--markdown", type=Path, help="write the report to this page")
    return made


def machine() -> dict[str, Any]:
    """What it runs on."""
    there = torch.cuda.is_available()
    return {
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if there else [],
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "engine": wn.engine(),
    }


def checked(name: str, check: Callable[[], Any]) -> Row:
    """What became of a check: ``passed``, ``skipped`` or ``failed``, and what there is to say."""
    start = time.monotonic()
    try:
        outcome, said = "passed", check()
    except NotHereError as reason:
        outcome, said = "skipped", str(reason)
    except Exception:  # Whatever it is, the other checks go on.
        outcome, said = "failed", traceback.format_exc()
    return {"check": name, "outcome": outcome, "said": said, "seconds": round(time.monotonic() - start, 1)}


def report(only: Sequence[str]) -> dict[str, Any]:
    """The checks of these names."""
    found: dict[str, Any] = {"machine": machine(), "checks": [], "timings": []}
    for name in only:
        row = checked(name, timings if name == TIMINGS else CHECKS[name])
        if name == TIMINGS and row["outcome"] == "passed":
            found["timings"], row["said"] = row["said"], f"{len(row['said'])} rows"
        sys.stderr.write(f"{name}: {row['outcome']}\n")
        found["checks"].append(row)
    return found


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    on = found["machine"]
    gpus = ", ".join(on["gpus"]) or "no GPU"
    lines = ["# GPU report", "", f"{gpus}; torch {on['torch']}, CUDA {on['cuda']}, engine {on['engine']}.", ""]
    lines += ["| check | outcome | seconds | |", "| --- | --- | --- | --- |"]
    for row in found["checks"]:
        last = row["said"].strip().splitlines()[-1:] or [""]
        lines.append(f"| {row['check']} | {row['outcome']} | {row['seconds']} | {last[0].replace('|', '/')} |")
    if found["timings"]:
        lines += ["", "| weights | way | microseconds | / torch: randn, add |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {row['weights']:,} | {row['way']} | {row['microseconds']:.1f} | {row['ratio']:.2f} |"
            for row in found["timings"]
        ]
    for row in found["checks"]:
        if row["outcome"] == "failed":
            lines += ["", f"## {row['check']}", "", "```", row["said"].strip(), "```"]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks; the exit status is 1 where one failed. What is skipped fails nothing, and is said."""
    given = parser().parse_args(argv)
    found = report(given.only)
    text = markdown(found)
    sys.stdout.write(text)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(text)
    return int(any(row["outcome"] == "failed" for row in found["checks"]))


if __name__ == "__main__":
    sys.exit(main())
