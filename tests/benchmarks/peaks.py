"""Peak memory: of each way the peak of a process of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from tests.benchmarks import processes
from tests.benchmarks.options import Options

LAYERS, WIDTH = 25, 2000


def peaks(section: str, ways: Iterable[str], layers: int, width: int, options: Options) -> dict[str, float]:
    """The peak of each way in MiB: what the module of the section says as a program, by `tell`."""
    found = {}
    for way in ways:
        options.progress(f"{section}: memory of {way}")
        sizes = ["--layers", str(layers), "--width", str(width), "--threads", str(options.threads)]
        command = [sys.executable, "-m", f"tests.benchmarks.{section}", "--way", way, *sizes]
        found[way] = float(processes.run(command, 600, processes.TRIMMED))
    return found


def tell(run: Callable[[str, int, int], None], ways: Iterable[str], argv: Sequence[str] | None = None) -> int:
    """Run one way on as many layers of a width, and print the peak of this process."""
    parser = argparse.ArgumentParser(description=tell.__doc__)
    parser.add_argument("--way", choices=list(ways), required=True)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    run(options.way, options.layers, options.width)
    sys.stdout.write(f"{high_water()}\n")
    return 0


def high_water() -> float:
    """The most memory that this process has had so far, in MiB."""
    # Not resource.getrusage, whose peak may be that of the process that has started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
