"""What depends on the conductance of a device, and on time: polynomials and tables, as plain tuples of numbers.

- ``(c0, c1, ...)``: a polynomial of r = g / g_max.
- ``((g, value), ...)``: a table, with straight lines between its conductances, and constant beyond them.
- ``((time, curve), ...)``: one of these for each time. Between and beyond the times it is linear in
  ``ln(1 + time / t0)``, and before the first one it is the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightnoise._checks import is_number
from weightnoise._errors import OptionError

Polynomial: TypeAlias = "tuple[float, ...]"
Table: TypeAlias = "tuple[tuple[float, float], ...]"
AtOneTime: TypeAlias = "Polynomial | Table"
Curve: TypeAlias = "AtOneTime | tuple[tuple[float, AtOneTime], ...]"


def check_curve(law: str, option: str, value: Any) -> None:
    """Raise `OptionError` unless ``value`` is a curve."""
    timed = _is_timed(value)
    curves = [curve for _, curve in value] if timed else [value]
    places = [[time for time, _ in value]] if timed else []
    places += [[g for g, _ in curve] for curve in curves if is_table(curve)]
    ascending = all(before < after for row in places for before, after in pairwise(row))
    if not all(_is_polynomial(curve) or is_table(curve) for curve in curves) or not ascending:
        raise OptionError(
            f"{law}({option}=...) must be a tuple of finite numbers, a polynomial of r; a table ((g, value), "
            f"...) of ascending conductances; or ((time, one of these), ...) of ascending times, got {value!r}."
        )


def _is_polynomial(value: object) -> bool:
    return isinstance(value, tuple) and all(map(is_number, value))


def is_table(value: object) -> bool:
    """Whether a curve is a table."""
    return isinstance(value, tuple) and all(_is_polynomial(row) and len(row) == 2 for row in value) and value != ()


def _is_timed(value: object) -> bool:
    if not isinstance(value, tuple) or not all(isinstance(one, tuple) and len(one) == 2 for one in value):
        return False
    return value != () and all(isinstance(curve, tuple) and is_number(time) for time, curve in value)


def _kind(curve: Any) -> str:
    """What a curve is that was checked."""
    if not curve or not isinstance(curve[0], tuple):
        return "polynomial"
    return "timed" if isinstance(curve[0][1], tuple) else "table"


def evaluate(curve: Any, g: Tensor, age: float, t0: float, scale: tuple[float, float]) -> Tensor:
    """The value at each conductance.

    Args:
        curve: a `Curve`.
        g: conductances.
        age: the time, divided by t0.
        t0: the unit of time.
        scale: the conductance at which r of a polynomial is 1, and what its values are multiplied by.
    """
    parts = []
    for share, one in _blend(curve, age, t0) if _kind(curve) == "timed" else [(1.0, curve)]:
        if _kind(one) == "table":
            parts.append(_interpolated([(place, share * value) for place, value in one], g))
        elif one:
            parts.append(polynomial([share * scale[1] * c for c in one], g / scale[0]))
    total: Any = sum(parts[1:], parts[0]) if parts else torch.zeros_like(g)
    return total  # type: ignore[no-any-return]


def _blend(curve: Any, age: float, t0: float) -> list[tuple[float, Any]]:
    """The curves of the times around this one, and what share each has."""
    ages = [time / t0 for time, _ in curve]
    if len(ages) == 1 or age <= ages[0]:
        return [(1.0, curve[0][1])]
    after = next((place for place, one in enumerate(ages) if one >= age), len(ages) - 1)
    low, high, here = (math.log1p(one) for one in (ages[after - 1], ages[after], age))
    share = (here - low) / (high - low)
    return [(1.0 - share, curve[after - 1][1]), (share, curve[after][1])]


def polynomial(coefficients: Sequence[float], state: Tensor) -> Tensor:
    """``c0 + c1 state + c2 state^2 + ...``."""
    total = torch.full_like(state, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * state + coefficient
    return total


def _interpolated(table: Sequence[tuple[float, float]], g: Tensor) -> Tensor:
    if len(table) == 1:
        return torch.full_like(g, table[0][1])
    slopes = [(then - value) / (after - place) for (place, value), (after, then) in pairwise(table)]
    bases = [value - slope * place for (place, value), slope in zip(table, slopes, strict=False)]
    inside = g.clamp(table[0][0], table[-1][0]).contiguous()
    between = g.new_tensor([place for place, _ in table[1:-1]])
    piece = torch.bucketize(inside.detach(), between)
    return g.new_tensor(bases)[piece] + g.new_tensor(slopes)[piece] * inside
