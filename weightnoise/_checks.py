"""Checks of options: each raises `ValueError` with the name of the option and what it got."""

from __future__ import annotations

import math


def check_strength(law: str, option: str, value: object) -> None:
    """Raise `ValueError` unless ``value`` is a finite number that is not negative."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:  # type: ignore[arg-type, operator]
        raise ValueError(f"{law}({option}=...) must be a finite number >= 0, got {value!r}.")


def check_count(law: str, option: str, value: object, least: int, most: int | None = None) -> None:
    """Raise `ValueError` unless ``value`` is a whole number of at least ``least`` and at most ``most``."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):  # type: ignore[operator]
        limits = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{law}({option}=...) must be a whole number {limits}, got {value!r}.")


def check_choice(law: str, option: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise `ValueError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{law}({option}=...) must be one of {listed}, got {value!r}.")


def check_per(law: str, per: object) -> None:
    """Raise `ValueError` unless ``per`` is "tensor" or a whole number."""
    if per == "tensor":
        return
    if isinstance(per, bool) or not isinstance(per, int):
        raise ValueError(f"{law}(per=...) must be 'tensor' or a channel dimension (int), got {per!r}.")


def check_seed(where: str, seed: object) -> None:
    """Raise `ValueError` unless ``seed`` is a whole number."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"{where}(seed=...) must be a whole number, got {seed!r}.")


def check_sign(where: str, sign: object) -> None:
    """Raise `ValueError` unless ``sign`` is 1 or -1."""
    if isinstance(sign, bool) or sign not in (1, -1):
        raise ValueError(f"{where}(sign=...) must be 1 or -1, got {sign!r}.")
