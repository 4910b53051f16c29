"""Events that happen to single weights, or to blocks of them, at a given rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightnoise._checks import check_count, check_strength
from weightnoise._errors import OptionError
from weightnoise._random import draws as _random
from weightnoise._torch.modes import in_transform

_RARE = 2.0**-10  # Below this rate, float32 numbers of 24 bits are too coarse: one unit is 2^-24.


def check_rate(law: str, option: str, value: object) -> None:
    """Raise `ValueError` unless ``value`` is a number in [0, 1]."""
    check_strength(law, option, value)
    if value > 1:  # type: ignore[operator]
        raise OptionError(f"{law}({option}=...) must be in [0, 1], got {value!r}.")


def check_chip(law: str, chip: object) -> None:
    """Raise `ValueError` unless ``chip`` is None or a whole number that is not negative."""
    if chip is not None:
        check_count(law, "chip", chip, 0)


def is_rare(*rates: float) -> bool:
    """Whether one of the rates is so small that the numbers for its event need more bits."""
    return any(0 < rate < _RARE for rate in rates)


def draw_events(weight: Tensor, shape: Sequence[int], *rates: float) -> Tensor:
    """Numbers of the given shape for events that happen at ``rates``, uniform on [0, 1).

    If one of the rates is small, they are uniform on [-1/2, 1/2) instead: those from 1/2 up are moved by -1. Both
    ends of [0, 1) then lie at 0, where floating-point numbers lie close, and a second random number fills in
    the bits that the first one lacks.
    """
    coarse = _random.unit_uniform(weight, shape)
    if coarse.dtype == torch.float64 or not is_rare(*rates):
        return coarse
    return torch.where(coarse < 0.5, coarse, coarse - 1.0) + _random.unit_uniform(weight, shape) * 2.0**-24


def event_mask(uniform: Tensor, rate: float, factor: float, *, rare: bool | None = None) -> Tensor:
    """Where an event of rate ``rate * |factor|`` happens, for the numbers of `draw_events`.

    A negative factor, the mirrored draw, looks at the other end of the same numbers.

    Args:
        uniform: the numbers.
        rate: of the event.
        factor: what multiplies it.
        rare: whether one of the rates that the numbers were drawn for is small; None: whether this one is.
    """
    if rare is None:
        rare = is_rare(rate)
    if isinstance(factor, Tensor):  # In compiled code under a schedule, which must not branch on it.
        rate = rate * factor.abs()
        return torch.where(factor < 0, _at_top(uniform, rate, rare), _at_bottom(uniform, rate, rare))
    return (_at_bottom if factor >= 0 else _at_top)(uniform, rate * abs(factor), rare)


def intervals(rate: float, factor: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the numbers lie for which `event_mask` says yes to a positive factor, and to a negative one."""
    rate, rare = rate * abs(factor), is_rare(rate)
    return (0.0, rate), (-rate, 0.0) if rare else (1.0 - rate, 1.0)


def spared(uniform: Tensor, rate: float, factor: float) -> Tensor:
    """1 where the event of `event_mask` does not happen and 0 where it does, in the dtype of the numbers."""
    if is_rare(rate) or isinstance(factor, Tensor) or in_transform():  # vmap has no rule for `ge_`.
        return (~event_mask(uniform, rate, factor)).to(uniform.dtype)
    rate = rate * abs(factor)  # In place, as there are no booleans to convert: a third of the time.
    return uniform.clone().ge_(rate) if factor >= 0 else uniform.clone().lt_(1.0 - rate)


def _at_bottom(uniform: Tensor, rate: float, rare: bool) -> Tensor:
    """Which numbers lie in [0, rate)."""
    return torch.where(uniform < 0, uniform < rate - 1.0, uniform < rate) if rare else uniform < rate


def _at_top(uniform: Tensor, rate: float, rare: bool) -> Tensor:
    """Which numbers lie in [1 - rate, 1)."""
    return torch.where(uniform < 0, uniform >= -rate, uniform >= 1.0 - rate) if rare else uniform >= 1.0 - rate


def rate_problem(law: object, rate: float, factor: float, below_one: bool = False) -> str | None:
    """Why ``rate`` cannot be multiplied by ``factor``, or None."""
    if isinstance(factor, Tensor):
        return None
    scaled = rate * abs(factor)
    if scaled < 1 or (scaled == 1 and not below_one):
        return None
    limit = "not below 1" if below_one else "above 1"
    return f"{law!r} scaled by {abs(factor):g} would have a rate of {scaled:g}, {limit}"


def draw_blocks(weight: Tensor, block: int, rate: float) -> Tensor:
    """The numbers of `draw_events`: one for each weight, or for each run of ``block`` weights of one output."""
    if block == 1 or weight.ndim == 0:
        return draw_events(weight, weight.shape, rate)
    rows, columns = _matrix_shape(weight)
    return draw_events(weight, (rows, -(-columns // block)), rate)


def spread_blocks(mask: Tensor, weight: Tensor, block: int) -> Tensor:
    """Expand the events that `draw_blocks` has drawn to the weight's shape."""
    if block == 1 or weight.ndim == 0:
        return mask
    columns = _matrix_shape(weight)[1]
    return mask.repeat_interleave(block, dim=1)[:, :columns].reshape(weight.shape)


def _matrix_shape(weight: Tensor) -> tuple[int, int]:
    rows = weight.shape[0]
    return rows, weight.numel() // rows if rows else 0


def rounded_at_random(code: Tensor, uniform: Tensor, factor: float) -> Tensor:
    """``round(code + u)`` with u on [-1/2, 1/2), without the sum, whose rounding moves whole numbers."""
    low = code.floor()
    fraction = code - low
    up, mirrored = uniform >= 1.0 - fraction, uniform < fraction
    if isinstance(factor, Tensor):
        return low + torch.where(factor < 0, mirrored, up)
    return low + (up if factor >= 0 else mirrored)
