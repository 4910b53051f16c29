"""The output of the command line: lines, files, progress, errors in one line."""

from __future__ import annotations

import importlib.util
import sys
import time


class CommandError(Exception):
    """An error that the command line reports in one line.

    Args:
        message: the line.
        code: the exit code: 1 for a failure, 2 for wrong usage.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def say(text: str) -> None:
    """Print a line for the user, beside what the command puts out."""
    print(f"weightnoise: {text}", file=sys.stderr)


def check_extras(what: str, *names: str) -> None:
    """Refuse what needs packages that are not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(f"{what} needs {' and '.join(missing)}: pip install 'torch-weightnoise[demo]'")


class Progress:
    """One line on a terminal, renewed; a line every few seconds elsewhere."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.last = -10.0

    def show(self, text: str) -> None:
        """Put ``text`` in the place of what was shown before."""
        now = time.monotonic()
        if now - self.last < (0.1 if self.terminal else 5.0):
            return
        self.last = now
        print(
            f"\r\x1b[K{text}" if self.terminal else text,
            end="" if self.terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def clear(self) -> None:
        """Empty the line."""
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
