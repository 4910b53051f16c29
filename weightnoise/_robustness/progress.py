"""A progress display for long work: tqdm where it is installed, else a line on standard error."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_QUIET = 2.0  # Seconds before anything is shown: short work needs no bar.


@contextmanager
def progress_bar(shown: bool) -> Iterator[Callable[[str], None]]:
    """A function to call with a description after each step of the work."""
    if not shown:
        yield lambda text: None
        return
    if importlib.util.find_spec("tqdm") is not None:
        from tqdm import tqdm

        bar: Any
        with tqdm(delay=_QUIET, leave=False, unit=" draws") as bar:

            def step(text: str) -> None:
                bar.set_description(text, refresh=False)
                bar.update()

            yield step
        return
    started = time.monotonic()
    width = 0

    def write(text: str) -> None:
        nonlocal width
        if time.monotonic() - started > _QUIET and sys.stderr.isatty():
            sys.stderr.write(f"\r{text.ljust(width)}")
            sys.stderr.flush()
            width = len(text)

    try:
        yield write
    finally:
        if width:
            sys.stderr.write(f"\r{' ' * width}\r")
