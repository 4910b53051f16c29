"""What `import weightnoise` adds to `import torch`: ``python -m tests.benchmarks.imports [times]``."""

from __future__ import annotations

import statistics
import subprocess
import sys

LIMIT = 0.1  # Seconds that the import should not exceed.
CODE = """
import time, torch
start, busy = time.perf_counter(), time.process_time()
import weightnoise
print(time.perf_counter() - start, time.process_time() - busy)
"""


def seconds() -> tuple[float, float]:
    """Of one import in a process of its own that has imported torch: by the clock, and of the processor."""
    output = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True).stdout
    passed, busy = map(float, output.split())
    return passed, busy


def slowest(count: int = 5) -> list[str]:
    """The modules that take longest by themselves, as ``python -X importtime`` sees them."""
    command = [sys.executable, "-X", "importtime", "-c", "import torch; import weightnoise"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stderr.splitlines()
    after_torch = lines[[line.rpartition("|")[2] for line in lines].index(" torch") + 1 :]
    rows = [line.removeprefix("import time:").split("|") for line in after_torch]
    rows.sort(key=lambda row: -int(row[0]))
    return [f"{int(own) / 1000:.1f} ms  {name.strip()}" for own, _, name in rows[:count]]


def main(times: int) -> str:
    """The report."""
    seconds()  # Once, so that byte code and the disk's cache are there.
    passed, busy = zip(*(seconds() for _ in range(times)), strict=True)
    figures = [
        f"{name}: median {statistics.median(found):.3f} s, {min(found):.3f} to {max(found):.3f} s"
        for name, found in (("clock", passed), ("processor", busy))
    ]
    return "\n".join([f"{times} processes; the limit is {LIMIT} s", *figures, *slowest()])


if __name__ == "__main__":
    sys.stdout.write(main(int(sys.argv[1]) if len(sys.argv) > 1 else 9) + "\n")
