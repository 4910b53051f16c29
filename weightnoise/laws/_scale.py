"""Relative strengths: the scale of a weight, and how a scaled draw is added to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from weightnoise._checks import check_choice, check_per
from weightnoise._errors import OptionError
from weightnoise._random import statistics as _statistics
from weightnoise._torch.modes import PLAIN, computes_numbers, in_dual_level
from weightnoise.laws._regions import Per, Regions, regional

_LARGE = 1 << 15
_HALF_MAX = torch.finfo(torch.float16).max
_ONE_PASS: dict[str | None, int] = {"absmax": _statistics.LARGEST, "std": _statistics.DEVIATION}

RelativeTo: TypeAlias = Literal["absmax", "std", "rms", "value"] | None
Gradient: TypeAlias = Literal["straight-through", "exact"]


def check_scale_options(law: str, relative_to: object, per: object, gradient: object, tile: object = None) -> None:
    """Raise `ValueError` for options that are unknown or that make no sense together."""
    check_choice(law, "relative_to", relative_to, (None, "absmax", "std", "rms", "value"))
    check_choice(law, "gradient", gradient, ("straight-through", "exact"))
    check_per(law, per)
    for option, value, usual in (("per", per, "tensor"), ("tile", tile, None)):
        if value != usual and relative_to in (None, "value"):
            raise OptionError(
                f"{law}({option}={value}) has no meaning with relative_to={relative_to!r}: there is no statistic "
                f"to take per channel. Drop {option}, or use relative_to='absmax', 'std' or 'rms'."
            )


def statistic(weight: Tensor, relative_to: RelativeTo, per: Per) -> Tensor:
    """Compute the scale of a relative strength, shaped to broadcast against ``weight``, in float32 or better.

    ``absmax`` is max |w|, ``rms`` is sqrt(mean w^2), ``std`` is the standard deviation about the
    mean (divided by n, so that a single element has 0), each over the whole tensor, over all
    dimensions but ``per``, or over each of the regions; ``value`` is the weight itself.
    """
    if relative_to == "value":
        return weight
    if weight.numel() == 0:
        return wide(weight.new_ones(()))
    if isinstance(per, Regions):
        return regional(weight, per, lambda part, dims: _over(part, relative_to, dims))
    dims = _reduced(weight, per)
    if not dims and per != "tensor":
        # A vector per element: each element is its own channel.
        return wide(torch.zeros_like(weight) if relative_to == "std" else weight.abs())
    one_pass = _ONE_PASS.get(relative_to)
    found = None if one_pass is None else _statistics.quick(weight.detach(), one_pass, _kept(weight, per))
    return _over(weight, relative_to, dims, found)


def _over(weight: Tensor, relative_to: RelativeTo, dims: tuple[int, ...], found: Tensor | None = None) -> Tensor:
    """The statistic over some dimensions, which stay; ``found`` is its value where that is known."""
    if relative_to == "absmax" and found is not None and not _needs_graph(weight):
        return found
    if relative_to == "absmax":
        # A twentieth of the time of torch.linalg.vector_norm with order infinity.
        return wide(torch.maximum(torch.amax(weight, dims, keepdim=True), -torch.amin(weight, dims, keepdim=True)))
    # The sum of many squares is no number of float16.
    weight = wide(weight)
    if relative_to == "std":
        return _std(weight, dims, found)
    count, norm = 1, weight
    for dim in dims:
        count *= weight.shape[dim]
    for some in (dims[-1:], dims[:-1]):  # In two steps: one sum of 10^7 squares is off by 4e-4 in float32.
        norm = torch.linalg.vector_norm(norm, dim=some, keepdim=True) if some else norm
    return norm / math.sqrt(count)


def _std(weight: Tensor, dims: tuple[int, ...], found: Tensor | None) -> Tensor:
    """As torch.std, which takes ten times as long. With a graph and without, it is the same number."""
    if found is None and _can_look(weight):
        found = _quick_std(weight.detach(), dims)
    if found is not None and not _needs_graph(weight):
        return found
    exact = torch.std(weight, dim=dims, correction=0, keepdim=True)
    return exact if found is None else found + (exact - exact.detach())


def _can_look(weight: Tensor) -> bool:
    numbers = type(weight) in PLAIN and weight.is_cpu and computes_numbers()
    return numbers and weight.numel() >= _LARGE and not in_dual_level()


def _quick_std(weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    """From two sums, where these do not cancel."""
    mean, rms = weight.mean(dims, keepdim=True), _over(weight, "rms", dims)
    if bool((mean.square() < 0.1 * rms.square()).all()):
        return (rms.square() - mean.square()).sqrt()
    return torch.std(weight, dim=dims, correction=0, keepdim=True)


def _needs_graph(weight: Tensor) -> bool:
    return (weight.requires_grad and torch.is_grad_enabled()) or in_dual_level()


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 or better."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def scale_of(weight: Tensor, relative_to: RelativeTo, per: Per, gradient: Gradient) -> Tensor | None:
    """Return the scale of a relative strength, a constant for straight-through; None for an absolute strength."""
    if relative_to is None:
        return None
    return statistic(weight if gradient == "exact" else weight.detach(), relative_to, per)


def has_parts(law: Any) -> bool:
    """Whether the scale of a law is that of an element, or the largest weight of the tensor or of a channel."""
    constant = law.relative_to == "absmax" and law.gradient == "straight-through"
    return law.relative_to in (None, "value") or (constant and not isinstance(law.regions, Regions))


def scale_of_part(law: Any, part: Tensor, over_parts: Callable[[Tensor], Tensor]) -> Tensor | None:
    """The scale of such a law on a part of a weight."""
    scale = scale_of(part, law.relative_to, law.regions, law.gradient)
    return over_parts(scale) if scale is not None and law.relative_to == "absmax" else scale


def extremes(weight: Tensor, per: Per) -> tuple[Tensor, Tensor]:
    """The smallest and the largest weight of the tensor or of each channel, shaped to broadcast."""
    if weight.numel() == 0:
        return weight.new_zeros(()), weight.new_zeros(())
    if isinstance(per, Regions):
        return (
            regional(weight, per, lambda part, dims: torch.amin(part, dims, keepdim=True)),
            regional(weight, per, lambda part, dims: torch.amax(part, dims, keepdim=True)),
        )
    dims = _reduced(weight, per)
    if not dims:
        return weight, weight
    found = _statistics.quick(weight, _statistics.EXTREMES, _kept(weight, per))
    if found is not None:
        return found[0], found[1]
    return torch.amin(weight, dim=dims, keepdim=True), torch.amax(weight, dim=dims, keepdim=True)


def _kept(weight: Tensor, per: int | str) -> int | None:
    return per % weight.ndim if isinstance(per, int) else None


def _reduced(weight: Tensor, per: int | str) -> tuple[int, ...]:
    keep = _kept(weight, per)
    return tuple(dim for dim in range(weight.ndim) if dim != keep)


def add_scaled(
    weight: Tensor, noise: Tensor, strength: float, scale: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """``weight + strength * scale * noise``, in one pass over the weight.

    Compiled code multiplies instead of using ``alpha`` and ``value``, which would make the strength
    a constant of the graph and recompile whenever it changes.
    """
    if torch.compiler.is_compiling():
        moved = noise * strength if scale is None else noise * scale * strength
        return (weight + moved).to(weight.dtype)
    if scale is None:
        if weight.dtype is torch.float16 and abs(strength) > _HALF_MAX:  # torch takes no alpha beyond.
            moved = torch.add(weight.float(), noise.float(), alpha=strength).to(weight.dtype)
            return moved if out is None else out.copy_(moved)
        return torch.add(weight, noise, alpha=strength, out=out)
    return torch.addcmul(weight, noise, scale, value=strength, out=out).to(weight.dtype)
