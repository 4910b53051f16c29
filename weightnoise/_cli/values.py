"""What is typed on the command line, as numbers, levels and paths."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


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


def levels(text: str) -> list[float]:
    """Numbers with commas or spaces between them."""
    levels = [number(part) for part in text.replace(",", " ").split()]
    if not levels or min(levels) < 0:
        raise argparse.ArgumentTypeError(f"must be numbers of at least 0, not {text!r}")
    return levels


def shard(text: str) -> tuple[int, int]:
    """Which of how many parts."""
    place, _, count = text.partition("/")
    if not (place.isdecimal() and count.isdecimal() and 1 <= int(place) <= int(count)):
        raise argparse.ArgumentTypeError(f"must be K/N, such as 2/8, not {text!r}")
    return int(place), int(count)


def figure(text: str) -> Path:
    """The name of a figure."""
    path = Path(text)
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"must end in .png, .pdf or .svg, not {text!r}")
    return path
