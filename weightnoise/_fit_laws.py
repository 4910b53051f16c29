"""Estimates as laws."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor

from weightnoise._errors import OptionError
from weightnoise._estimating import Drift, Points, rounded
from weightnoise.laws import Frozen, Noise, ProgrammingNoise, StateDependentNoise


def conductance_law(
    spread: tuple[float, ...] | Points,
    read: Points | None,
    drift: Drift | None,
    shift: tuple[float, ...],
    limits: tuple[float, float],
    target: Tensor,
    times: Tensor | None,
) -> ProgrammingNoise:
    """Programming, drift and read noise of a pair of devices."""
    options: dict[str, Any] = {"drift": ()}
    if drift is not None:
        a, b = drift.mean
        low, high = map(rounded, drift.limits)
        std = rounded(drift.std)
        options = {"drift": (rounded(a), rounded(b), low, high), "drift_spread": (std, 0.0, std, std)}
    if times is not None:
        options["t0"] = rounded(times[0])
    longest = 0.0 if times is None else rounded(times[-1] - times[0])
    empty, full = map(rounded, limits)
    if empty >= full:
        raise OptionError(f"fit_device(g_min={empty!r}, g_max={full!r}): the first must be less than the second.")
    return ProgrammingNoise(
        full,
        g_min=empty,
        programming=spread if isinstance(spread, tuple) else spread.table(),
        shift=shift,
        read=() if read is None else read.table(),
        t_read=None,
        measured=(rounded(target.min()), rounded(target.max()), longest),
        **options,
    )


def weight_law(spread: tuple[float, ...] | Points, read: Points | None, largest: float) -> Noise | list[Noise]:
    """A standard deviation relative to the largest weight; that of the chip apart from that of a reading."""
    chip = _state_law(spread, largest)
    return chip if read is None else [Frozen(chip), _state_law(read, largest)]


def _state_law(spread: tuple[float, ...] | Points, largest: float) -> StateDependentNoise:
    """A polynomial of |w| / largest, or lines from point to point."""
    if isinstance(spread, tuple):
        return StateDependentNoise(tuple(rounded(c / largest) for c in spread))
    rows = [(place / largest, value / largest) for place, value in spread.table()]
    pieces: list[tuple[float, ...]] = [(rows[0][1],)]
    for (x, y), (after, then) in pairwise(rows):
        slope = (then - y) / (after - x)
        pieces.append((y - slope * x, slope))
    ends = [(rows[-1][1],)] if len(rows) > 1 else []
    breaks = tuple(x for x, _ in rows) if ends else ()
    return StateDependentNoise((*pieces, *ends), breaks=breaks)
