"""Functions as operations of torch's: what compiled code calls, and what a dispatch mode sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def make_operator(
    name: str, schema: str, function: Callable[..., Any], fake: Callable[..., Any], batched: Any = None
) -> None:
    """Make ``torch.ops.weightnoise.<name>`` of a function of tensors on the CPU, which has no gradient.

    Once, also where the module that has the function is loaded again. No `torch.library.custom_op`: its checks, of
    gradients and of memory that two tensors share, take as long again as the call.

    Args:
        name: of the operation.
        schema: its arguments and its result, as torch writes them.
        function: what it does, to tensors with numbers.
        fake: the same for tensors without: an empty result.
        batched: the same under `torch.vmap`; None where it is not called there.
    """
    if hasattr(torch.ops.weightnoise, name):
        return
    full = f"weightnoise::{name}"
    torch.library.define(full, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(full, "CPU", function)
    torch.library.register_fake(full, fake)
    if batched is not None:
        torch.library.register_vmap(full, batched)
