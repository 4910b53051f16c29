"""A robustness evaluation that is kept on disk as it goes, and goes on where it was interrupted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weightnoise._cli.files import read_text, write_whole
from weightnoise._cli.output import CommandError
from weightnoise._errors import WeightNoiseError
from weightnoise._random import draws as _random
from weightnoise._robustness.metric import Metric, measure
from weightnoise._robustness.report import RobustnessReport

_INTERVAL = 1.0  # Seconds between two writes, so that a fast metric is not slowed down.


class ResumableMetric:
    """A metric that remembers all it has found, also in another process.

    An evaluation calls its metric in a fixed order. So an interrupted one goes on when it is run again
    from its start with a metric that gives the answers it has, and measures from where they end. To
    be the same then, a metric that draws from torch's generator is seeded anew for each call.

    Args:
        metric: as for `evaluate_robustness`.
        path: the file to keep the answers in, and at last the report; None for no file.
        about: all that the numbers depend on; a file with another one is refused.
        seed: of what the metric itself draws.
        fresh: forget what the file holds.

    Attributes:
        measured: the answers so far.
        report: the report of a sweep that had been finished; None where there is something to do.

    Raises:
        CommandError: if the file holds something else than a sweep with the same ``about``.
    """

    def __init__(
        self, metric: Metric, path: Path | None, about: Mapping[str, Any], *, seed: int, fresh: bool = False
    ) -> None:
        self._metric, self._path, self._seed = metric, path, seed
        self._about = json.loads(json.dumps(about))
        self._calls, self._saved = 0, time.monotonic()
        found = {} if path is None or fresh or not path.exists() else _read(path, self._about)
        self.measured: list[dict[str, float]] = found.get("measured", [])
        self.report = RobustnessReport.from_dict(found) if "curves" in found else None

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the metric of this call, measured now or read from the journal."""
        call = self._calls
        if call == len(self.measured):
            torch.manual_seed(_random.derive_seed(self._seed, f"metric {call}"))
            self.measured.append(measure(model, self._metric))
            if time.monotonic() - self._saved >= _INTERVAL:
                self.save()
        self._calls += 1
        return self.measured[call]

    def save(self) -> None:
        """Keep the answers so far."""
        self._write({"sweep": self._about, "measured": self.measured})
        self._saved = time.monotonic()

    def run(self, evaluate: Callable[[], RobustnessReport]) -> RobustnessReport:
        """The report of an evaluation of this metric; keep it, or as far as it came."""
        try:
            report = evaluate()
        except BaseException:
            if self.measured:
                self.save()
            raise
        self._write({**report.to_dict(), "sweep": self._about})
        return report

    def _write(self, content: Mapping[str, Any]) -> None:
        if self._path is not None:
            write_whole(self._path, json.dumps(content, indent=1))


def _read(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    instead = "Give another --out, or --fresh to overwrite it."
    text = read_text(path)
    try:
        content: dict[str, Any] = json.loads(text)
        before: dict[str, Any] = dict(content["sweep"])
    except (KeyError, RecursionError, TypeError, ValueError):
        raise CommandError(f"{path} is there and holds no sweep. {instead}", code=1) from None
    differing = [name for name in {**before, **about} if before.get(name) != about.get(name)]
    if differing:
        raise CommandError(f"{path} holds another sweep: {', '.join(differing)} differ. {instead}", code=1)
    if not _whole(content):
        raise CommandError(f"{path} is damaged. {instead}", code=1)
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
    return isinstance(measured, list) and all(
        isinstance(one, dict) and all(type(value) in (int, float) for value in one.values()) for one in measured
    )
