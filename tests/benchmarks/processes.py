"""Running what needs a process of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

# So that what is freed goes back to the system and does not hide in the allocator.
TRIMMED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class ProcessError(Exception):
    """A process that fails; the text is the line that says why."""


def run(command: Sequence[str], seconds: float, variables: Mapping[str, str] | None = None) -> str:
    """What a command, run in the repository, writes to its standard output.

    Raises:
        ProcessError: if it fails, or takes longer than ``seconds``.
    """
    environment = {**os.environ, **(variables or {})}
    try:
        found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ProcessError(f"took longer than {seconds:.0f} seconds") from None
    if found.returncode:
        raise ProcessError(reason(found.stderr) or f"exit status {found.returncode}")
    return found.stdout


def reason(text: str) -> str:
    """The line of a failed command's messages that says why: pip's first error, or a traceback's last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error:")]
    return (errors or lines[-1:] or [""])[0][:200]
