"""The options of laws: how they are read, and how they are shown."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

from weightnoise._checks import check_choice, check_count, check_per, plain_number
from weightnoise._errors import OptionError
from weightnoise.laws._regions import check_tile, regions_of

_MOST_BITS = 16  # A float32 weight still has several values per step.


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


def check_levels(law: str, bits: object, levels: object, symmetric: object, per: object) -> None:
    """Raise `OptionError` unless either ``bits`` or ``levels`` says how many levels there are."""
    if (bits is None) == (levels is None):
        raise OptionError(f"{law} takes bits, the length of a code, or levels, how many there are: one.")
    if levels is not None:
        check_count(law, "levels", levels, 2, 2**_MOST_BITS)
    check_bits(law, 2 if bits is None else bits, symmetric, per)


def check_bits(law: str, bits: object, symmetric: object, per: object) -> None:
    """Raise `ValueError` for a code that cannot be, or for an unknown ``per``."""
    check_choice(law, "symmetric", symmetric, (True, False))
    check_count(law, "bits", bits, 1, _MOST_BITS)
    check_per(law, per)
    if symmetric and bits == 1:
        raise OptionError(f"{law}(bits=1) has the single level 0 when symmetric; use 2 bits, or symmetric=False.")
