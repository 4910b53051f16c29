"""Large weights: in pieces that stay in the processor's cache, and without a pass for their gradient.

What a law that looks at each weight by itself makes on its way is then a few hundred kilobytes, used again for the
next piece: a new tensor of the size of a large weight costs more than most operations that fill it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from weightnoise._torch.autograd import handing_on
from weightnoise._torch.modes import PLAIN, computes_numbers, in_dual_level, is_plain, runs_eagerly

PIECE = 1 << 16  # Numbers. With fewer, the calls cost more than what stays in the cache saves.
LARGE = 1 << 15  # Numbers for which another pass costs more than a function of our own.


def by_pieces(fn: Callable[..., Tensor], weight: Tensor, *others: Tensor | float | None) -> Tensor:
    """``fn(weight, *others)``, a piece of dimension 0 after the other where that is the same and pays.

    Args:
        fn: makes each number of a tensor of the weight's shape and dtype from those at its place.
        weight: a tensor.
        others: numbers, None, and tensors that broadcast against the weight, perhaps with one more dimension
            before those of the weight.
    """
    tensors = [one for one in (weight, *others) if isinstance(one, Tensor)]
    if not _can_be_cut(tensors):
        return fn(weight, *others)
    # Several threads wait for each other at the end of every operation: of more pieces more often.
    alone = torch.get_num_threads() == 1
    if not alone or weight.numel() < 2 * PIECE or weight.shape[0] < 2 or not is_plain(weight):
        return fn(weight, *others)
    rows = max(1, PIECE // (weight.numel() // weight.shape[0]))
    out = torch.empty_like(weight)
    for start in range(0, weight.shape[0], rows):
        count = min(rows, weight.shape[0] - start)
        parts = [_part(one, weight, start, count) for one in others]
        out.narrow(0, start, count).copy_(fn(weight.narrow(0, start, count), *parts))
    return out


def _can_be_cut(tensors: list[Tensor]) -> bool:
    """Whether operations on parts of these are those on the whole, with no graph to make."""
    if not runs_eagerly() or in_dual_level():
        return False
    graph = torch.is_grad_enabled()
    return all(one.is_cpu and type(one) in PLAIN and not (graph and one.requires_grad) for one in tensors)


def _part(other: Tensor | float | None, weight: Tensor, start: int, count: int) -> Tensor | float | None:
    """What belongs to these rows of the weight."""
    if not isinstance(other, Tensor):
        return other
    dim = other.ndim - weight.ndim
    return other if dim < 0 or other.shape[dim] == 1 else other.narrow(dim, start, count)


def straight_through(weight: Tensor, noisy: Tensor) -> Tensor:
    """Exactly the value of ``noisy``, with the gradient going to ``weight`` unchanged."""
    if weight.numel() < LARGE or not _by_itself(weight, noisy):
        return noisy + (weight - weight.detach())  # Of a small weight faster than a function of our own.
    return handing_on(weight, noisy)


def _by_itself(weight: Tensor, noisy: Tensor) -> bool:
    """Whether ``noisy`` is a plain tensor with memory of its own that has no other gradient."""
    plain = computes_numbers() and type(weight) in PLAIN and type(noisy) is Tensor and not in_dual_level()
    return plain and not noisy.requires_grad and noisy.data_ptr() != weight.data_ptr()
