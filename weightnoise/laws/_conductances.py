"""Weights as conductances: pairs of devices, or one device for each weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from weightnoise.laws._quantize import divisor
from weightnoise.laws._regions import Per, Regions, regional
from weightnoise.laws._scale import extremes, statistic, wide


def units(weight: Tensor, pairs: tuple[float, ...], span: float, per: Per) -> tuple[Tensor, Tensor | None]:
    """The weight that one unit of conductance stands for, and the weight at g_min of single devices.

    Where all weights are 0, or equal for single devices, the unit is 0, and there is no noise.

    Args:
        weight: in float32 or better.
        pairs: how much the difference of each pair counts, the pair that is filled first at the beginning; ()
            for one device, at 0 for the smallest weight and at ``span`` for the largest.
        span: the largest conductance above g_min.
        per: what has a scale of its own.
    """
    if pairs:
        return statistic(weight, "absmax", per) / (sum(pairs) * span), None
    low, high = (wide(bound) for bound in extremes(weight, per))
    return (high - low) / span, low


def targets(
    weight: Tensor, pairs: tuple[float, ...], span: float, unit: Tensor, low: Tensor | None
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """What the devices of each weight are programmed to above g_min, and the way back.

    Args:
        weight: in float32 or better; a part of one, with what belongs to it of ``unit`` and ``low``.
        pairs: as for `units`.
        span: as for `units`.
        unit: of `units`.
        low: of `units`.

    Returns:
        Conductances of the shape (devices, *weight.shape), the positive one of a pair first; and a function from
        what is added to them to what is added to the weight.
    """
    if low is not None:
        return ((weight - low) / divisor(unit)).unsqueeze(0), lambda moved: moved[0] * unit
    positive = weight.clamp(min=0.0)
    # Not (-w).clamp(min=0): at w = 0 both of the pair would have a slope, and the weight one of 2.
    left = torch.stack((positive, positive - weight)) / divisor(unit)
    if pairs == (1.0,):
        return left, lambda moved: (moved[0] - moved[1]) * unit
    devices = []
    for place, factor in enumerate(pairs):
        part = left / factor
        last = place == len(pairs) - 1  # Its devices hold what is left, be that rounded up.
        part = part if last else part.clamp(max=span)
        devices.append(part)
        left = left if last else (left - factor * span).clamp(min=0.0)

    def back(moved: Tensor) -> Tensor:
        difference: Any = sum(
            factor * (moved[2 * place] - moved[2 * place + 1]) for place, factor in enumerate(pairs)
        )
        added: Tensor = difference * unit
        return added

    return torch.cat(devices), back


def sums(conductances: Tensor, over: Per) -> Tensor:
    """The sum over all devices of a weight, or over those of each output, to broadcast against the devices."""
    if over == "tensor":
        return conductances.sum()
    together = conductances.sum(dim=0)
    if isinstance(over, Regions):
        return regional(together, over, lambda part, dims: part.sum(dims, keepdim=True))
    dims = [dim for dim in range(together.ndim) if dim != int(over) % together.ndim]
    return together.sum(dims, keepdim=True) if dims else together
