"""A robustness evaluation that is kept on disk as it goes, and goes on where it was interrupted."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weightnoise._cli.files import read_text, write_whole
from weightnoise._cli.output import CommandError
from weightnoise._errors import WeightNoiseError
from weightnoise._robustness.cells import Found
from weightnoise._robustness.report import RobustnessReport
from weightnoise._robustness.running import Store

_INTERVAL = 1.0  # Seconds between two writes, so that a fast metric is not slowed down.
_INSTEAD = "Give another --out, or --fresh to overwrite it."


class Journal(Store):
    """What an evaluation has measured, by cell and draw, also in another process.

    Args:
        path: the file to keep it in, and at last the report; None for no file.
        about: all that the numbers depend on; a file with another one is refused.
        fresh: forget what the file holds.

    Attributes:
        measured: what was found in each draw so far.
        content: what the file of a sweep holds that had been finished; None where there is something to do.

    Raises:
        CommandError: if the file holds something else than a sweep with the same ``about``.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any], *, fresh: bool = False) -> None:
        self._path, self._saved = path, time.monotonic()
        self._about = json.loads(json.dumps(about))
        found = {} if path is None or fresh or not path.exists() else _read(path, self._about)
        self.measured: dict[str, Found] = found.get("measured", {})
        self.content = found if "curves" in found else None

    def get(self, key: str, number: int) -> Found | None:
        """What was found in a draw of a cell."""
        return self.measured.get(f"{key} #{number}")

    def put(self, key: str, number: int, found: Found) -> None:
        """Keep what was found."""
        self.measured[f"{key} #{number}"] = dict(found)
        if time.monotonic() - self._saved >= _INTERVAL:
            self.save()

    def save(self) -> None:
        """Write what was found so far."""
        self._write({"sweep": self._about, "measured": self.measured})
        self._saved = time.monotonic()

    @contextmanager
    def saved(self) -> Iterator[None]:
        """Write what was found inside, where that ends early."""
        try:
            yield
        except BaseException:
            if self.measured:
                self.save()
            raise

    def finish(self, content: Mapping[str, Any]) -> None:
        """Write what has come out in the place of what was found on the way."""
        self._write({**content, "sweep": self._about})

    def _write(self, content: Mapping[str, Any]) -> None:
        if self._path is not None:
            write_whole(self._path, json.dumps(content, indent=1))


def _read(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    text = read_text(path)
    try:
        content: dict[str, Any] = json.loads(text)
        before: dict[str, Any] = dict(content["sweep"])
    except (KeyError, RecursionError, TypeError, ValueError):
        raise CommandError(f"{path} is there and holds no sweep. {_INSTEAD}", code=1) from None
    differing = [
        f"{name} (there {before.get(name)!r}, now {about.get(name)!r})"
        for name in {**before, **about}
        if before.get(name) != about.get(name)
    ]
    if differing:
        raise CommandError(f"{path} holds another sweep: {'; '.join(differing)}. {_INSTEAD}", code=1)
    if not _whole(content):
        raise CommandError(f"{path} is damaged. {_INSTEAD}", code=1)
    return content


def _whole(content: Mapping[str, Any]) -> bool:
    """Whether a sweep has what it has to have."""
    if "curves" in content:
        try:
            RobustnessReport.from_dict(content)
        except WeightNoiseError:
            return False
        return True
    measured = content.get("measured")
    return isinstance(measured, dict) and all(
        isinstance(one, dict) and all(type(value) in (int, float) for value in one.values())
        for one in measured.values()
    )
