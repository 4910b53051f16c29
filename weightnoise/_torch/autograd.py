"""Noisy weights whose gradient goes to the clean ones as it comes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def memory_beside(weight: Tensor) -> Tensor:
    """A tensor to write what is made of the weight into, past autograd; the gradient goes to the weight unchanged.

    It is a view of the weight that is given memory of its own, and so counts in-place changes with the weight, as
    the weight itself would in its place. A sum, only to be overwritten, is one more pass over a large weight; a
    Function in Python holds on to the gradient, so that torch copies it.
    """
    memory = torch.empty_like(weight)
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return memory
    out = weight[...]
    out.data = memory  # Nothing else puts other memory under a result of autograd's.
    return out


class CleanRow(torch.autograd.Function):
    """A noisy embedding with one row of the clean one, whose gradient is zero anyway.

    The gradient passes as it comes, so that sparse ones stay sparse.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(noisy: Tensor, weight: Tensor, row: int) -> Tensor:
        """A copy: the law may have returned the weight itself, or need its result in the backward."""
        output = noisy.clone()
        output[row] = weight[row]
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """All of it goes to the noisy weight."""
        return grads[0], None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """All of it comes from the noisy weight."""
        tangent: Tensor = tangents[0].clone()
        return tangent


class Identity(torch.autograd.Function):
    """A noisy weight that was made without a graph, with the gradient going to the clean one unchanged."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, noisy: Tensor) -> Tensor:
        """The noisy weight; a law may have returned the clean one."""
        return noisy.view_as(noisy) if noisy is not weight else noisy.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """All of it goes to the clean weight."""
        return grads[0], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """All of it comes from the clean weight."""
        tangent: Tensor = tangents[0].clone()
        return tangent
