"""What is typed on the command line, as numbers, levels and paths."""

from __future__ import annotations

import argparse
import ast
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any


def whole(text: str, least: int = 0) -> int:
    """A whole number."""
    number = int(text) if text.isdecimal() else -1
    if number < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not {text!r}")
    return number


def count(text: str) -> int:
    """A whole number of at least 1."""
    return whole(text, least=1)


def several(text: str) -> int:
    """A whole number of at least 2."""
    return whole(text, least=2)


def number(text: str) -> float:
    """A finite number."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}")
    return found


def until(text: str) -> float | str:
    """A standard error, or a share of the mean."""
    found = number(text.removesuffix("%"))
    return text if text.endswith("%") else found


def strength(text: str) -> float:
    """A number above 0."""
    try:
        found = number(text)
    except argparse.ArgumentTypeError:
        found = 0.0
    if found <= 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return found


_PART = re.compile(r"""(?:[^\s,()\[\]'"]|\((?:[^()]|\([^()]*\))*\)|\[[^\[\]]*\]|'[^']*'|"[^"]*")+""")


def levels(text: str) -> list[Any]:
    """Numbers, names, or names with their values, such as ``hour=3600``, with commas or spaces between them.

    A value may also be None, True, False, or a tuple, list or text as in Python; it is its own name then.
    """
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text).strip(", \t\n"):
        raise argparse.ArgumentTypeError(f"must be {_LEVELS}, not {text!r}")
    found = []
    for part in parts:
        name, equals, value = part.rpartition("=")
        level = _level(value if name else part)
        plain = isinstance(level, (int, float, str)) and not isinstance(level, bool)
        found.append((name, level) if equals and name else level if plain else (part, level))
    return found


_LEVELS = "finite numbers, names, or values as in Python such as None or (64,64)"


def _level(text: str) -> Any:
    """A whole number as one, since some options take no other; what is nothing else is a name."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if math.isfinite(found):
        return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else found
    if text in ("None", "True", "False") or text[:1] in "([\"'":
        with suppress(SyntaxError, ValueError):
            return ast.literal_eval(text)
    elif re.fullmatch(r"[^\W\d][\w.+-]*", text) and text.lower() not in ("nan", "inf", "infinity"):
        return text
    raise argparse.ArgumentTypeError(f"must be {_LEVELS}, not {text!r}")


def shard(text: str) -> tuple[int, int]:
    """Which of how many parts."""
    place, _, count = text.partition("/")
    if not (place.isdecimal() and count.isdecimal() and 1 <= int(place) <= int(count)):
        raise argparse.ArgumentTypeError(f"must be K/N, such as 2/8, not {text!r}")
    return int(place), int(count)


def figure(text: str) -> Path:
    """The name of a figure."""
    return _ending(text, ".png", ".pdf", ".svg")


def table(text: str) -> Path:
    """The name of a report, in one of the forms that it is written in."""
    return _ending(text, ".json", ".csv", ".md", ".html")


def _ending(text: str, *endings: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in endings:
        raise argparse.ArgumentTypeError(f"must end in {', '.join(endings[:-1])} or {endings[-1]}, not {text!r}")
    return path
