"""Laws of numbers that are drawn already, applied in one pass over a weight: the table of ``csrc/passes.h``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from weightnoise._random import philox as _engine
from weightnoise._random.memory import address, has_plain_numbers
from weightnoise._torch.autograd import handing_on, output_like
from weightnoise._torch.modes import sees_operations
from weightnoise._torch.operators import make_operator

LOG_NORMAL, SOFTPLUS, ROOT, REPLACED = range(4)  # As in csrc/.

_Constants = ctypes.c_float * 6


def can_apply(factor: float, weight: Tensor, *others: Tensor) -> bool:
    """Whether one pass is right for these tensors, here and now: float32 numbers side by side, as many in each.

    Small weights too: the parts of a weight, in several processes, have the bits of the whole.
    """
    return (
        _engine._LIBRARY is not None
        and not isinstance(factor, Tensor)
        and all(one.shape == weight.shape for one in others)
        and has_plain_numbers(weight, *others)
    )


def apply(
    law: int, constants: Sequence[float], weight: Tensor, drawn: Tensor, learned: Tensor | None = None
) -> Tensor:
    """What a law of the table makes of a weight, with the gradient going to ``weight`` unchanged.

    Args:
        law: its number.
        constants: up to six, of the law.
        weight: what `can_apply` has agreed to.
        drawn: the random numbers.
        learned: what it has learned for each weight; without a gradient.
    """
    if sees_operations():
        made = torch.ops.weightnoise.applied(law, constants, weight.detach(), drawn, learned)
        return handing_on(weight, made)
    return _written(output_like(weight), law, constants, weight, drawn, learned)


def _written(
    out: Tensor, law: int, constants: Sequence[float], weight: Tensor, drawn: Tensor, learned: Tensor | None
) -> Tensor:
    assert _engine._LIBRARY is not None
    count = weight.numel()
    _engine._LIBRARY.weightnoise_apply(
        law,
        *[address(one, torch.float32, count) for one in (out, weight, drawn)],
        None if learned is None else address(learned, torch.float32, count),
        _Constants(*constants),
        count,
        _engine._LEVEL,
        torch.get_num_threads(),
    )
    return out


def _applied(
    law: int, constants: Sequence[float], weight: Tensor, drawn: Tensor, learned: Tensor | None
) -> Tensor:
    return _written(torch.empty_like(weight), law, constants, weight, drawn, learned)


if _engine._LIBRARY is not None:
    make_operator(
        "applied",
        "(int law, float[] constants, Tensor weight, Tensor drawn, Tensor? learned) -> Tensor",
        _applied,
        lambda law, constants, weight, drawn, learned: torch.empty_like(weight),
    )


def with_gradients(
    make: Callable[[], Tensor],
    gradients: Callable[..., Sequence[Tensor | None]],
    kept: Sequence[Tensor],
    *inputs: Tensor,
) -> Tensor:
    """What ``make`` returns, past autograd, with gradients of one's own.

    Args:
        make: makes the noisy weight.
        gradients: makes those of ``inputs`` of that of the noisy weight and of ``kept``, by operations which have
            gradients themselves.
        kept: tensors that the gradients take.
        inputs: the tensors that have gradients.
    """
    if not torch.is_grad_enabled() or not any(one.requires_grad for one in inputs):
        return make()
    made: Tensor = _Made.apply(make, gradients, kept, *inputs)  # type: ignore[no-untyped-call]
    return made


class _Made(torch.autograd.Function):
    """A tensor, and a function for the gradients of what it was made from."""

    @staticmethod
    def forward(ctx: Any, make: Any, gradients: Any, kept: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        """What is made is new to autograd."""
        ctx.gradients = gradients
        ctx.save_for_backward(*kept)
        return make()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Of the inputs alone."""
        return None, None, None, *ctx.gradients(grads[0], *ctx.saved_tensors)
