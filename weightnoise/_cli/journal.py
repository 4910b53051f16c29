"""A robustness evaluation that is kept on disk as it goes, and goes on where it was interrupted."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weightnoise._cli.files import read_text, write_whole
from weightnoise._cli.terminal import CommandError
from weightnoise._errors import WeightNoiseError
from weightnoise._robustness.cells import Found
from weightnoise._robustness.report import RobustnessReport
from weightnoise._robustness.running import Store

_INTERVAL = 1.0  # Seconds between two writes, or ten times what one takes: a fast metric is not slowed down.
_INSTEAD = "Give another --out, or --fresh to overwrite it."


class Journal(Store):
    """What an evaluation has measured, by cell and draw, also in another process.

    Args:
        path: the file to keep it in, and at last the report; None for no file.
        about: all that the numbers depend on; a file with another one is refused.
        fresh: forget what the file holds.
        asked: what may have changed, such as how many draws are asked for: more of them go on from the others.

    Attributes:
        measured: what was found in each draw so far.
        content: what the file of a sweep holds that had been finished; None where there is something to do.
        extends: whether that is to go on from a sweep that had been finished.

    Raises:
        CommandError: if the file holds something else than a sweep with the same ``about``.
    """

    def __init__(
        self,
        path: Path | None,
        about: Mapping[str, Any],
        *,
        fresh: bool = False,
        asked: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._path, self._saved, self._cost, self._new = path, time.monotonic(), 0.0, False
        self._about, self._asked = json.loads(json.dumps([about, asked or {}]))
        found = {} if path is None or fresh or not path.exists() else _read(path, self._about, self._asked)
        finished = "curves" in found
        self.content = found if finished and found["asked"] == self._asked else None
        self.extends = finished and self.content is None
        self.measured = _measured(found) if finished else found.get("measured", {})

    def put(self, key: str, number: int, found: Found) -> None:
        """Keep what was found."""
        super().put(key, number, found)
        self._new = True
        if time.monotonic() - self._saved >= _INTERVAL * max(1.0, 10 * self._cost):
            self.save()

    def save(self) -> None:
        """Write what was found so far."""
        start = time.monotonic()
        content = {"sweep": self._about, "asked": self._asked, "measured": self.measured}
        self._write({**content, "so far": self.so_far()} if self._path is not None else content)
        self._saved = time.monotonic()
        self._cost = self._saved - start

    @contextmanager
    def saved(self) -> Iterator[None]:
        """Write what was found inside, where that ends early."""
        try:
            yield
        except BaseException:
            if self._new:
                self.save()
            raise

    def finish(self, content: Mapping[str, Any]) -> None:
        """Write what has come out in the place of what was found on the way."""
        without = [self.get("clean", number) for number in (0, 1)]
        self._write({**content, "sweep": self._about, "asked": self._asked, "without noise": without})

    def _write(self, content: Mapping[str, Any]) -> None:
        if self._path is not None:
            write_whole(self._path, json.dumps(content, indent=1))


def _measured(content: Mapping[str, Any]) -> dict[str, Found]:
    """What was found in each draw of a sweep that had been finished, from its report."""
    report = RobustnessReport.from_dict(content)
    measured: dict[str, dict[str, float]] = {}
    for label, values in report.curves.items():
        parts = label.split(" / ")  # The law or the parameter, and the entry of the metric, if it has several.
        for end in range(1, len(parts) + 1):
            name, entry = (" / ".join(some) for some in (parts[:end], parts[end:]))
            for level, draw in report.measured[label].nonzero().tolist():
                found = measured.setdefault(f"{level} {name} #{report.chips[draw][1]}", {})
                found[entry] = values[level, draw].item()
    return {**measured, **{f"clean #{place}": one for place, one in enumerate(content["without noise"])}}


def _read(path: Path, about: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    text = read_text(path)
    try:
        content: dict[str, Any] = json.loads(text)
        before: dict[str, Any] = dict(content["sweep"])
        draws = int(content["asked"].get("draws", 0))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise CommandError(f"{path} is there and holds no sweep. {_INSTEAD}", code=1) from None
    differing = [
        f"{name} (there {before.get(name)!r}, now {about.get(name)!r})"
        for name in {**before, **about}
        if before.get(name) != about.get(name)
    ]
    if draws > asked.get("draws", 0):
        differing.append(f"draws (there {draws}, now {asked.get('draws')})")
    if differing:
        raise CommandError(f"{path} holds another sweep: {'; '.join(differing)}. {_INSTEAD}", code=1)
    if not _whole(content):
        raise CommandError(f"{path} is damaged. {_INSTEAD}", code=1)
    return content


def _whole(content: Mapping[str, Any]) -> bool:
    """Whether a sweep has what it has to have."""
    if "curves" not in content:
        measured = content.get("measured")
        return isinstance(measured, dict) and all(map(_is_found, measured.values()))
    without = content.get("without noise")
    try:
        RobustnessReport.from_dict(content)
    except WeightNoiseError:
        return False
    return isinstance(without, list) and all(map(_is_found, without))


def _is_found(one: Any) -> bool:
    return isinstance(one, dict) and all(type(value) in (int, float) for value in one.values())
