"""What a strength is relative to, and how a scaled draw is added to a weight."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

RelativeTo: TypeAlias = Literal["absmax", "std", "rms", "value"] | None
Per: TypeAlias = Literal["tensor"] | int
Gradient: TypeAlias = Literal["straight-through", "exact"]


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


def check_scale_options(law: str, relative_to: object, per: object, gradient: object) -> None:
    """Raise `ValueError` for options that are unknown or that make no sense together."""
    check_choice(law, "relative_to", relative_to, (None, "absmax", "std", "rms", "value"))
    check_choice(law, "gradient", gradient, ("straight-through", "exact"))
    check_per(law, per)
    if per != "tensor" and relative_to in (None, "value"):
        raise ValueError(
            f"{law}(per={per}) has no meaning with relative_to={relative_to!r}: there is no statistic "
            "to take per channel. Drop per, or use relative_to='absmax', 'std' or 'rms'."
        )


def check_per(law: str, per: object) -> None:
    """Raise `ValueError` unless ``per`` is "tensor" or a whole number."""
    if per == "tensor":
        return
    if isinstance(per, bool) or not isinstance(per, int):
        raise ValueError(f"{law}(per=...) must be 'tensor' or a channel dimension (int), got {per!r}.")


def per_problem(per: Per, weight: Tensor) -> str | None:
    """Why ``per`` does not fit ``weight``, or None."""
    if per == "tensor" or -weight.ndim <= per < weight.ndim:
        return None
    return f"per={per} names a dimension that a tensor of shape {tuple(weight.shape)} does not have"


def statistic(weight: Tensor, relative_to: RelativeTo, per: Per) -> Tensor:
    """The number that a relative strength multiplies, shaped to broadcast against ``weight``.

    ``absmax`` is max |w|, ``rms`` is sqrt(mean w^2), ``std`` is the standard deviation about the
    mean (divided by n, so that a single element has 0), each over the whole tensor or over all
    dimensions but ``per``; ``value`` is the weight itself.
    """
    if relative_to == "value":
        return weight
    if weight.numel() == 0:
        return weight.new_ones(())
    dims = _reduced(weight, per)
    if not dims and per != "tensor":
        # A vector per element: each element is its own channel.
        return torch.zeros_like(weight) if relative_to == "std" else weight.abs()
    if relative_to == "absmax":
        # A twentieth of the time of torch.linalg.vector_norm with order infinity.
        return torch.maximum(torch.amax(weight, dims, keepdim=True), -torch.amin(weight, dims, keepdim=True))
    if relative_to == "std":
        return torch.std(weight, dim=dims, correction=0, keepdim=True)
    count = weight.numel() // (1 if per == "tensor" else weight.shape[per])
    norm: Tensor = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
    return norm / math.sqrt(count)


def scale_of(weight: Tensor, relative_to: RelativeTo, per: Per, gradient: Gradient) -> Tensor | None:
    """What multiplies a relative strength; a constant for straight-through; None for an absolute strength."""
    if relative_to is None:
        return None
    return statistic(weight if gradient == "exact" else weight.detach(), relative_to, per)


def extremes(weight: Tensor, per: Per) -> tuple[Tensor, Tensor]:
    """The smallest and the largest weight of the tensor or of each channel, shaped to broadcast."""
    if weight.numel() == 0:
        return weight.new_zeros(()), weight.new_zeros(())
    dims = _reduced(weight, per)
    if not dims:
        return weight, weight
    return torch.amin(weight, dim=dims, keepdim=True), torch.amax(weight, dim=dims, keepdim=True)


def _reduced(weight: Tensor, per: Per) -> tuple[int, ...]:
    keep = None if per == "tensor" else per % weight.ndim
    return tuple(dim for dim in range(weight.ndim) if dim != keep)


def add_scaled(weight: Tensor, noise: Tensor, strength: float, scale: Tensor | None) -> Tensor:
    """``weight + strength * scale * noise``, in one pass over the weight.

    Compiled code multiplies instead of using ``alpha`` and ``value``, which would make the strength
    a constant of the graph and recompile whenever it changes.
    """
    if torch.compiler.is_compiling():
        moved = noise * strength if scale is None else noise * scale * strength
        return weight + moved.to(weight.dtype)
    if scale is None:
        return torch.add(weight, noise, alpha=strength)
    return torch.addcmul(weight, noise, scale, value=strength)
