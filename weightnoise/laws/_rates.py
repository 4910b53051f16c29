"""Events that happen to single weights, or to blocks of them, at a given rate."""

from __future__ import annotations

import torch
from torch import Tensor

from weightnoise._checks import check_count, check_strength
from weightnoise._random import draws as _random


def check_rate(law: str, option: str, value: object) -> None:
    """Raise `ValueError` unless ``value`` is a number in [0, 1]."""
    check_strength(law, option, value)
    if value > 1:  # type: ignore[operator]
        raise ValueError(f"{law}({option}=...) must be in [0, 1], got {value!r}.")


def check_chip(law: str, chip: object) -> None:
    """Raise `ValueError` unless ``chip`` is None or a whole number that is not negative."""
    if chip is not None:
        check_count(law, "chip", chip, 0)


def event_mask(uniform: Tensor, rate: float, factor: float) -> Tensor:
    """Where an event of rate ``rate * |factor|`` happens, for numbers uniform on [0, 1).

    A negative factor, the mirrored draw, looks at the other end of the same numbers.
    """
    if isinstance(factor, Tensor):  # In compiled code under a schedule, which must not branch on it.
        return torch.where(factor < 0, 1.0 - uniform, uniform) < rate * factor.abs()
    rate = rate * abs(factor)
    return uniform < rate if factor >= 0 else uniform > 1.0 - rate


def rate_problem(law: object, rate: float, factor: float, below_one: bool = False) -> str | None:
    """Why ``rate`` cannot be multiplied by ``factor``, or None."""
    if isinstance(factor, Tensor):
        return None
    scaled = rate * abs(factor)
    if scaled < 1 or (scaled == 1 and not below_one):
        return None
    limit = "not below 1" if below_one else "above 1"
    return f"{law!r} scaled by {abs(factor):g} would have a rate of {scaled:g}, {limit}"


def draw_blocks(weight: Tensor, block: int) -> Tensor:
    """Numbers uniform on [0, 1): one for each weight, or for each run of ``block`` weights of one output."""
    if block == 1 or weight.ndim == 0:
        return _random.unit_uniform(weight, weight.shape)
    rows, columns = _matrix_shape(weight)
    return _random.unit_uniform(weight, (rows, -(-columns // block)))


def spread_blocks(mask: Tensor, weight: Tensor, block: int) -> Tensor:
    """What `draw_blocks` led to, in the weight's shape."""
    if block == 1 or weight.ndim == 0:
        return mask
    columns = _matrix_shape(weight)[1]
    return mask.repeat_interleave(block, dim=1)[:, :columns].reshape(weight.shape)


def _matrix_shape(weight: Tensor) -> tuple[int, int]:
    rows = weight.shape[0]
    return rows, weight.numel() // rows if rows else 0
