"""The options of laws: how they are read, and how they are shown."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

from weightnoise._checks import plain_number
from weightnoise.laws._regions import check_tile, regions_of


def law_repr(law: Any) -> str:
    """``Gaussian(std=0.1)``: the options that differ from their defaults, as one would write them."""
    options = (
        f"{option.name}={getattr(law, option.name)!r}"
        for option in fields(law)
        if option.default is MISSING or getattr(law, option.name) != option.default
    )
    return f"{type(law).__name__}({', '.join(options)})"


def with_plain_numbers(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """A check of options that finds numbers of Python in the place of 0-dim tensors and NumPy numbers."""

    @functools.wraps(check)
    def post_init(self: Any) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            several = type(value) is tuple
            object.__setattr__(
                self, option.name, tuple(map(plain_number, value)) if several else plain_number(value)
            )
        check_tile(type(self).__name__, self.tile, self.per)
        check(self)
        object.__setattr__(self, "regions", regions_of(self))

    return post_init
