"""Checks of options: each raises `OptionError` with the name of the option and what it got."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from weightnoise._errors import OptionError, OptionTypeError


def check_model(model: object) -> None:
    """Raise `OptionTypeError` unless ``model`` is a module."""
    if not isinstance(model, nn.Module):
        hint = " Give them one by one." if isinstance(model, (list, tuple)) else ""
        raise OptionTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.{hint}")


def plain_number(value: Any) -> Any:
    """The number that a 0-dim tensor or a NumPy number holds; anything else, and what has a gradient, as it is."""
    if isinstance(value, (int, float, str)) or getattr(value, "ndim", None) != 0:
        return float(value) if isinstance(value, float) else value  # A float64 of NumPy is one, but for its repr.
    return value if getattr(value, "requires_grad", False) or not hasattr(value, "item") else value.item()


def is_number(value: object) -> bool:
    """Whether a value is a finite number of Python."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_strength(law: str, option: str, value: Any) -> Any:
    """Raise `OptionError` unless ``value`` is a finite number that is not negative; return it as a plain one."""
    value = plain_number(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise OptionError(f"{law}({option}=...) must be a finite number >= 0, got {value!r}.")
    return value


def check_count(law: str, option: str, value: Any, least: int, most: int | None = None) -> Any:
    """Raise `OptionError` unless ``value`` is a whole number within the limits; return it as a plain one."""
    value = plain_number(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        limits = f">= {least}" if most is None else f"from {least} to {most}"
        raise OptionError(f"{law}({option}=...) must be a whole number {limits}, got {value!r}.")
    return value


def check_choice(law: str, option: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise `OptionError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise OptionError(f"{law}({option}=...) must be one of {listed}, got {value!r}.")


def check_per(law: str, per: object) -> None:
    """Raise `OptionError` unless ``per`` is "tensor", "output", "input" or a whole number."""
    if per in ("tensor", "output", "input") or type(per).__name__ == "Regions":
        return
    if isinstance(per, bool) or not isinstance(per, int):
        raise OptionError(
            f"{law}(per=...) must be 'tensor' or a channel dimension (int), or 'output' or 'input', got {per!r}."
        )


def check_seed(where: str, seed: Any) -> Any:
    """Raise `OptionError` unless ``seed`` is a whole number; return it as a plain one."""
    seed = plain_number(seed)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise OptionError(f"{where}(seed=...) must be a whole number, got {seed!r}.")
    return seed


def check_sign(where: str, sign: object) -> None:
    """Raise `OptionError` unless ``sign`` is 1 or -1."""
    if isinstance(sign, bool) or sign not in (1, -1):
        raise OptionError(f"{where}(sign=...) must be 1 or -1, got {sign!r}.")
