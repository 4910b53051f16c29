"""The options of `ProgrammingNoise`: what they can be, and how far the data behind them reach."""

from __future__ import annotations

import functools
import sys
import warnings
from dataclasses import fields
from typing import Any

from weightnoise._checks import check_choice, check_per, check_strength, is_number
from weightnoise._errors import DeviceRangeWarning, OptionError
from weightnoise.laws._curves import check_curve, is_table
from weightnoise.laws._options import law_repr
from weightnoise.laws._rates import check_chip, check_rate
from weightnoise.laws._regions import Regions

_NAME = "ProgrammingNoise"


def check_device(law: Any) -> None:
    """Raise `OptionError` for an option that is none, or for two that exclude each other."""
    optional = [option for option in ("g_reference", "t_read") if getattr(law, option) is not None]
    for option in ("g_max", "time", "t0", "g_min", *optional):
        check_strength(_NAME, option, getattr(law, option))
        if option not in ("time", "g_min") and getattr(law, option) == 0:
            raise OptionError(f"{_NAME}({option}=...) must be positive.")
    if law.g_min >= law.g_max:
        raise OptionError(f"{_NAME}(g_min={law.g_min!r}) must be less than g_max, {law.g_max!r}.")
    for option in ("programming", "shift", "relaxation"):
        check_curve(_NAME, option, getattr(law, option))
    _check_numbers("drift", law.drift, (0, 4))
    _check_numbers("drift_spread", law.drift_spread, (4,))
    if not is_table(law.read):
        _check_numbers("read", law.read, (0, 3))
    if law.drift and law.relaxation:
        raise OptionError(
            f"{_NAME}(relaxation=...) takes the place of a drift with exponents: give drift=() with it."
        )
    if not isinstance(law.pairs, tuple) or not all(is_number(pair) and pair > 0 for pair in law.pairs):
        raise OptionError(f"{_NAME}(pairs=...) must be a tuple of positive numbers, got {law.pairs!r}.")
    if law.t_read is not None and law.t_read > law.time + law.t0:
        raise OptionError(
            f"{_NAME}(t_read={law.t_read!r}) must be at most time + t0, {law.time + law.t0!r}: a read of that "
            "length began before the programming. Give t_read=None for read noise that does not grow."
        )
    _check_limits(law)
    if not isinstance(law.compensate, Regions):
        check_choice(_NAME, "compensate", law.compensate, (True, False, "tensor", "output", "global"))
    check_per(_NAME, law.per)
    check_chip(_NAME, law.chip)
    check_choice(_NAME, "gradient", law.gradient, ("straight-through", "exact"))


def _check_limits(law: Any) -> None:
    for option, length in (("bounds", 2), ("stuck", 2), ("measured", 3)):
        values = getattr(law, option)
        if option == "measured" and values is None:
            continue
        known = isinstance(values, tuple) and len(values) == length
        if not known or not all(value is None or is_number(value) for value in values):
            raise OptionError(f"{_NAME}({option}=...) must be {length} numbers, got {values!r}.")
    least, most = law.bounds
    if least is None or (most is not None and most < least):
        raise OptionError(f"{_NAME}(bounds=...) must be (least, largest or None), got {law.bounds!r}.")
    for rate in law.stuck:
        check_rate(_NAME, "stuck", rate)
    if sum(law.stuck) > 1:
        raise OptionError(f"{_NAME}(stuck={law.stuck!r}): the rates add up to more than 1.")


def _check_numbers(option: str, values: object, lengths: tuple[int, ...]) -> None:
    numbers = isinstance(values, tuple) and all(map(is_number, values))
    if not numbers or len(values) not in lengths:  # type: ignore[arg-type]
        raise OptionError(
            f"{_NAME}({option}=...) must be a tuple of {lengths[-1]} finite numbers, got {values!r}."
        )


def named_repr(law: Any) -> str:
    """``replace(devices.SONOS, time=86400.0)`` where that is shorter than all of its numbers."""
    text, measured = law_repr(law), sys.modules.get("weightnoise.devices")  # None while that is imported.
    for name in () if measured is None else measured.__all__:
        base = getattr(measured, name, law)
        changed = [
            f", {option.name}={getattr(law, option.name)!r}"
            for option in fields(law)
            if getattr(law, option.name) != getattr(base, option.name)
        ]
        written = f"replace(devices.{name}{''.join(changed)})" if changed else f"devices.{name}"
        if name != "PCM" and len(written) < len(text):
            text = written
    return text


def warn_beyond(law: Any) -> None:
    """Warn once where the law reaches beyond the data that it is from."""
    least, largest, longest = law.measured or (None, None, None)
    for option, limit, beyond in (("g_min", least, -1), ("g_max", largest, 1), ("time", longest, 1)):
        value = getattr(law, option)
        if limit is not None and (value - limit) * beyond > 0:
            _warn(f"ProgrammingNoise({option}={value:g}) lies beyond the measurements, which reach {limit:g}.")


@functools.cache
def _warn(text: str) -> None:
    # Frames: this one, the two above, the checks of options, and the __init__ of the dataclass.
    warnings.warn(f"{text} What it does there is extrapolated.", DeviceRangeWarning, stacklevel=6)
