"""Processes that train one model together: what they have found, as one."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor


def is_distributed() -> bool:
    """Whether there are other processes."""
    dist = torch.distributed
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def group_in_forward() -> tuple[bool, Any]:
    """Whether it is known who runs the same forward now, and the group of them; None for this process alone."""
    if not is_distributed():
        return True, None
    parallel = sys.modules.get("torch.nn.parallel.distributed")
    ddp = getattr(getattr(parallel, "DistributedDataParallel", None), "_active_ddp_module", None)
    return (False, None) if ddp is None else (True, ddp.process_group)


def together(found: Tensor, count: Tensor, group: Any, most: bool) -> Tensor | None:
    """The largest, or the mean weighted by the counts, of what processes have found; None where all counts are 0.

    Args:
        found: finite and not negative; any number where the count is 0.
        count: how many batches it is of.
        group: the processes; None for this one alone.
        most: whether the largest is asked for.
    """
    found, shape = torch.where(count > 0, found, 0.0).flatten(), found.shape
    if group is not None:
        both = torch.cat([found if most else found * count, count.reshape(1)])
        ops = torch.distributed.ReduceOp
        torch.distributed.all_reduce(both, op=ops.MAX if most else ops.SUM, group=group)
        count = both[-1]
        found = both[:-1] if most else both[:-1] / count
    return found.reshape(shape) if bool(count > 0) else None
