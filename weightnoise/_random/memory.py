"""Where the numbers of a tensor are, for C to read and to write."""

from __future__ import annotations

import torch
from torch import Tensor

from weightnoise._torch.modes import PLAIN, computes_numbers, in_dual_level, is_plain

_STRIDED = torch.strided


def has_plain_numbers(*tensors: Tensor) -> bool:
    """Whether C may work on all of these here and now: float32 numbers side by side.

    Under a dispatch mode too, by an operator that it sees: a forward may be in a mode and its recomputation not,
    and both have to have the same bits, and save as many tensors.
    """
    return (
        computes_numbers()
        and not in_dual_level()
        and all(one.is_cpu and one.dtype is torch.float32 and is_plain(one) for one in tensors)
    )


def address(tensor: Tensor, dtype: torch.dtype, count: int) -> int:
    """Where the numbers of a tensor are, for C to read or write: the one place that an address comes from."""
    # As is_plain, and spelt out: a call takes as long as a hundred numbers.
    plain = type(tensor) in PLAIN and tensor.layout is _STRIDED and tensor.is_contiguous() and not tensor.is_neg()
    if not (plain and tensor.is_cpu and tensor.dtype is dtype and tensor.numel() == count):
        raise RuntimeError(
            f"The generator needs {count} numbers side by side in {dtype} on the CPU, and got a "
            f"{type(tensor).__name__} of shape {tuple(tensor.shape)} in {tensor.dtype} on {tensor.device}. Set "
            "WEIGHTNOISE_ENGINE=torch to do without it, and report this."
        )
    found = tensor.data_ptr()
    if found == 0 < count:
        raise RuntimeError(
            f"A weight of shape {tuple(tensor.shape)} has no memory now, as between the forwards of a sharded "
            "model. Read it while it has, or inside weightnoise.no_noise(model)."
        )
    return found


def size_of_rows(count: int, rows: int) -> int:
    """How many of ``count`` numbers belong to each scale."""
    size, rest = divmod(count, rows)
    if rest:
        raise RuntimeError(f"{rows} scales do not fit {count} numbers.")
    return size
