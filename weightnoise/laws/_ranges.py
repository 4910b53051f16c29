"""Ranges: what a batch asks for, and how a learned one decays."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from weightnoise.laws._regions import Per
from weightnoise.laws._scale import statistic

Method: TypeAlias = Literal["max", "std", "quantile"]
METHODS = ("max", "std", "quantile")


def asked_range(value: Tensor, method: Method, k: float, share: float, per: Per) -> Tensor:
    """The range that one batch asks for, shaped to broadcast; where that is 0, the largest, or 1."""
    if method == "quantile":
        found = _quantile(value.abs(), share, per)
    elif method == "std":
        found = k * statistic(value, "std", per)
    else:
        found = statistic(value, "absmax", per)
    found = torch.where(found == 0, found.amax(), found)
    return torch.where(found == 0, 1.0, found)


def _quantile(sizes: Tensor, share: float, per: Per) -> Tensor:
    """The smallest number that at least this share of the tensor, or of each channel, does not exceed."""
    if sizes.numel() == 0:
        return sizes.new_ones(())
    dim = per % sizes.ndim if isinstance(per, int) else None
    rows = sizes.reshape(1, -1) if dim is None else sizes.movedim(dim, 0).flatten(1)
    count = rows.shape[1]
    place = min(max(math.ceil(share * count), 1), count)
    found = rows.kthvalue(place, dim=1).values
    return found.reshape([size if own == dim else 1 for own, size in enumerate(sizes.shape)])


def decaying(top: Tensor, outside: Tensor, decay: float, below: float) -> Tensor:
    """The range, with ``decay`` times itself added to its gradient where it clips a smaller share than ``below``.

    Args:
        top: ranges, shaped to broadcast.
        outside: which elements of the activation they clip.
        decay: how much.
        below: the share.
    """
    if outside.numel() == 0:
        return top
    with torch.no_grad():
        share = outside.to(top.dtype).sum_to_size(top.shape) * (top.numel() / outside.numel())
        pull = torch.where(share < below, decay * top, 0.0)
    pulled: Tensor = _Pulled.apply(top, pull)  # type: ignore[no-untyped-call]
    return pulled


class _Pulled(torch.autograd.Function):
    """A tensor as it is, with something added to its gradient, whatever that is multiplied by afterwards."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, pull: Tensor) -> Tensor:
        """A copy."""
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """What is added is kept."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The sum."""
        (pull,) = ctx.saved_tensors
        return grads[0] + pull, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """As it is: a pull is no derivative."""
        tangent: Tensor = tangents[0].clone()
        return tangent
