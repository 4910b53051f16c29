"""What depends on the conductance of a device, and on time: polynomials and tables, as plain tuples of numbers.

- ``(c0, c1, ...)``: a polynomial of r = g / g_max.
- ``((g, value), ...)``: a table, with straight lines between its conductances, and constant beyond them.
- ``((time, curve), ...)``: one of these for each time. Between and beyond the times it is linear in
  ``ln(1 + time / t0)``, and before the first one it is the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
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

_MOST_CELLS = 4096
LEAST = 1e-7  # Of g_max: the logarithm of a conductance of 0 is not needed, its clamped value is.


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
    tables: dict[tuple[float, ...], list[float]] = {}
    for share, one in _blend(curve, age, t0) if _kind(curve) == "timed" else [(1.0, curve)]:
        if _kind(one) == "table":
            places, values = zip(*one, strict=True)
            sums = tables.setdefault(places, [0.0] * len(places))  # Of two times, mostly at the same conductances.
            sums[:] = [before + share * value for before, value in zip(sums, values, strict=True)]
        elif one:
            parts.append(polynomial([share * scale[1] * c for c in one], g / scale[0]))
    parts += [interpolated(list(zip(places, values, strict=True)), g) for places, values in tables.items()]
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
    if len(coefficients) == 1:
        return torch.full_like(state, coefficients[0])
    total: Any = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * state + coefficient
    return total  # type: ignore[no-any-return]


def interpolated(table: Sequence[tuple[float, float]], g: Tensor) -> Tensor:
    """Straight lines between the conductances of a table, constant beyond them."""
    if len(table) == 1:
        return torch.full_like(g, table[0][1])
    slopes = [(then - value) / (after - place) for (place, value), (after, then) in pairwise(table)]
    bases = [value - slope * place for (place, value), slope in zip(table, slopes, strict=False)]
    places = tuple(place for place, _ in table)
    first, last = places[0], places[-1]
    inside = g.clamp(first, last).contiguous()
    cells = None if torch.compiler.is_compiling() else _cells(places)  # Dynamo knows no fractions.
    if cells is None:
        piece = torch.bucketize(inside.detach(), g.new_tensor(places[1:-1]))
    else:  # A twentieth of the time of a search.
        count, pieces = len(cells), cells
        slopes, bases = [slopes[one] for one in pieces], [bases[one] for one in pieces]
        piece = ((inside.detach() - first) * (count / (last - first))).int().clamp(0, count - 1)
    chosen = (g.new_tensor(some).index_select(0, piece.flatten()).view(g.shape) for some in (bases, slopes))
    return next(chosen) + next(chosen) * inside


@lru_cache
def _cells(places: tuple[float, ...]) -> list[int] | None:
    """Of each of as many cells of equal width as leave none in two pieces, the piece; None for too many.

    Rounding may take a conductance at an end of a cell for one of the next: the lines meet there.
    """
    exact = [Fraction(repr(place)) for place in places]
    parts = [after - before for before, after in pairwise(exact)]
    whole = math.lcm(*(part.denominator for part in parts))
    widths = [int(part * whole) for part in parts]
    counts = [width // math.gcd(*widths) for width in widths]
    if sum(counts) > _MOST_CELLS:
        return None
    return [piece for piece, count in enumerate(counts) for _ in range(count)]


def clamped_line(ratio: Tensor, a: float, b: float, low: float, high: float) -> Tensor:
    """``clamp(a + b ln r, low, high)``."""
    return torch.rsub(ratio.clamp(min=LEAST).log(), a, alpha=-b).clamp(low, high)


def power_law(g: Tensor, g_max: float, a: float, b: float) -> Tensor:
    """``a / r^b`` with ``r = g / g_max``, by a logarithm: in two thirds of the time of a power."""
    if a == 0:
        return torch.zeros_like(g)
    log = g.clamp(min=LEAST * g_max).log()
    return torch.rsub(log, math.log(a) + b * math.log(g_max), alpha=b).exp()
