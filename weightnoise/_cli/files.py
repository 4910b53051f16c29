"""Files that the command line writes: whole or not at all, by one process at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from weightnoise._cli.terminal import CommandError, say

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file at once: whoever reads it finds the one before or the new one, and never a part.

    Raises:
        CommandError: if it cannot be written; the file is then as it was.
    """
    with _said("write", path):
        path = path.resolve()  # What a link points to, and not the link, is replaced.
        beside = path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # No other process has this name.
        try:
            with beside.open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def try_to_write(path: Path) -> None:
    """Refuse a path that cannot be written, before any time is spent on what goes there."""
    with _said("write", path):
        path = path.resolve()
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        if path.exists():
            path.open("ab").close()
        beside = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
        beside.open("xb").close()
        beside.unlink()


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        CommandError: if it cannot be read.
    """
    with _said("read", path):
        return path.read_text(encoding="utf-8")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes that lock ``path`` out; the system takes the lock off a process that dies.

    Raises:
        CommandError: if another process has it.
    """
    beside = path.resolve()
    beside = beside.with_name(f".{beside.name}.lock")
    with _said("write", path):
        descriptor = _opened(beside, path)
    try:
        yield
    finally:
        if sys.platform == "win32":  # There, an open file cannot be removed.
            os.close(descriptor)
        with suppress(OSError):
            beside.unlink()
        if sys.platform != "win32":  # Elsewhere it goes before the lock does, so that nobody removes another's.
            os.close(descriptor)


def _opened(beside: Path, path: Path) -> int:
    while True:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(descriptor)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            raise CommandError(
                f"another sweep is writing {path}: wait for it, or give another --out", code=1
            ) from None
        except OSError as error:  # A file system without locks.
            say(f"{path} cannot be locked ({error.strerror or error}): start no second sweep on it")
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), beside.stat()):
                return descriptor
        os.close(descriptor)  # The process before has removed this file meanwhile.


def _take(descriptor: int) -> None:
    # Not flock, whose locks live on in the processes that this one has forked.
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def _said(what: str, path: Path) -> Iterator[None]:
    """Say in one line why a file cannot be read or written."""
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else "it is no text"
        raise CommandError(f"cannot {what} {path}: {reason}", code=1 if what == "write" else 2) from None
