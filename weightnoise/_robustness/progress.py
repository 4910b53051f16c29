"""A progress display for long work: tqdm where it is installed, else a line on standard error."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

# tqdm's own forms put a colon behind what is said first.
_OPEN = "{desc}{n_fmt}{unit} [{elapsed}, {rate_fmt}]"
_KNOWN = "{desc}{percentage:3.0f}%|{bar}{r_bar}"
_QUIET = 2.0  # Seconds before anything is shown: short work needs no bar.


class Ticker(Protocol):
    """What an evaluation tells of its progress."""

    def expect(self, steps: int) -> None:
        """So many steps more are to come, or fewer; where nothing is said, the end is not known."""

    def __call__(self, text: str) -> None:
        """One step is done; ``text`` says which."""


class _Silent:
    def expect(self, steps: int) -> None:
        pass

    def __call__(self, text: str) -> None:
        pass


class _Bar:
    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def expect(self, steps: int) -> None:
        self._bar.total, self._bar.bar_format = (self._bar.total or 0) + steps, _KNOWN

    def __call__(self, text: str) -> None:
        self._bar.set_description_str(f"{text} ", refresh=False)
        self._bar.update()


class _Line:
    """The line is renewed on a terminal, and not written elsewhere."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._total = self._done = self.width = 0

    def expect(self, steps: int) -> None:
        self._total += steps

    def __call__(self, text: str) -> None:
        self._done += 1
        past = time.monotonic() - self._started
        if past > _QUIET and sys.stderr.isatty():
            left = past / self._done * max(self._total - self._done, 0)
            total = f" of {self._total}, {clock(left)} left" if self._total else ""
            self._write(f"{text} ({self._done}{total})")

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r{text.ljust(self.width)}")
        sys.stderr.flush()
        self.width = len(text)

    def clear(self) -> None:
        """Empty the line."""
        if self.width:
            sys.stderr.write(f"\r{' ' * self.width}\r")


def clock(seconds: float) -> str:
    """A time as tqdm writes it: 1:05, 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def progress_bar(shown: bool) -> Iterator[Ticker]:
    """What to call after each step of the work, and to tell how many are to come."""
    if not shown:
        yield _Silent()
    elif importlib.util.find_spec("tqdm") is not None:
        from tqdm import tqdm

        with tqdm(delay=_QUIET, leave=False, unit=" draws", bar_format=_OPEN) as bar:
            yield _Bar(bar)
    else:
        line = _Line()
        try:
            yield line
        finally:
            line.clear()
