"""``python -m tests.benchmarks.memory``: what noise adds to the peak memory of a training step, as a table.

Each figure is the peak of a process of its own, less that of the plain step.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import weightnoise as wn

WAYS = {
    "plain": None,
    "Gaussian(0.01), keep": (wn.Gaussian(0.01), "keep"),
    "Gaussian(0.01), recompute": (wn.Gaussian(0.01), "recompute"),
    "Gaussian(0.05, relative_to='absmax'), keep": (wn.Gaussian(0.05, relative_to="absmax"), "keep"),
    "Gaussian(0.05, relative_to='absmax'), recompute": (wn.Gaussian(0.05, relative_to="absmax"), "recompute"),
    "Uniform(0.01), keep": (wn.Uniform(0.01), "keep"),
    "Uniform(0.01), recompute": (wn.Uniform(0.01), "recompute"),
    "DropConnect(0.1), keep": (wn.DropConnect(0.1), "keep"),
    "DropConnect(0.1), recompute": (wn.DropConnect(0.1), "recompute"),
}


def peak(way: str, layers: int, width: int) -> float:
    """Peak memory in MiB of this process, which does a few steps."""
    torch.set_num_threads(2)
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    options: Any = WAYS[way]
    if options is not None:
        wn.add_weight_noise(model, options[0], memory=options[1])
    x = torch.randn(32, width)
    for _ in range(3):
        model.zero_grad(set_to_none=False)
        model(x).sum().backward()
    # Not resource.getrusage, whose peak may be that of the process that has started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory", description=__doc__)
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, default=25)
    parser.add_argument("--width", type=int, default=2000)
    options = parser.parse_args(argv)
    if options.way is not None:
        sys.stdout.write(f"{peak(options.way, options.layers, options.width)}\n")
        return 0
    # So that what is freed goes back to the system and does not hide in the allocator.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    sizes = ["--layers", str(options.layers), "--width", str(options.width)]
    peaks = {}
    for way in WAYS:
        command = [sys.executable, "-m", "tests.benchmarks.memory", "--way", way, *sizes]
        found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        peaks[way] = float(found.stdout)
    plain, one = peaks.pop("plain"), options.width**2 * 4 / 2**20
    lines = [f"| {options.layers} x Linear({options.width}) | extra, MiB | in weight matrices |", "|---|---|---|"]
    lines += [f"| {way} | {found - plain:.0f} | {(found - plain) / one:.1f} |" for way, found in peaks.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
