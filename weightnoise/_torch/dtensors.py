"""Tensors over several processes: what a process has of them, and what all of them have in common.

`torch.distributed.tensor` is imported where there is one: the import takes long, and most never need it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from weightnoise._torch.modules import is_dtensor


def is_distributing() -> bool:
    """Whether this thread is in `distribute_module`, by which `parallelize_module` cuts weights."""
    tensor = sys.modules.get("torch.distributed.tensor")
    code = None if tensor is None else tensor.distribute_module.__code__
    frame: FrameType | None = None if code is None else sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def _replicated(weight: Any) -> list[Any]:
    from torch.distributed.tensor import Replicate

    return [Replicate()] * weight.device_mesh.ndim


def stand_in(weight: Tensor) -> Tensor:
    """A tensor without numbers, of the shape, dtype and device of a whole weight."""
    return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)


def gathered(weight: Any) -> Tensor:
    """The whole weight, in every process; its gradient is that of the whole weight in every process too."""
    everywhere = _replicated(weight)
    tensor: Tensor = weight.redistribute(placements=everywhere).to_local(grad_placements=everywhere)
    return tensor


def spread(whole: Tensor, like: Any) -> Any:
    """A tensor that every process has whole, placed as another one; no process talks to another in this."""
    from torch.distributed.tensor import DTensor

    everywhere = DTensor.from_local(whole, like.device_mesh, _replicated(like), run_check=False)
    return everywhere.redistribute(placements=like.placements)


def local_part(whole: Tensor, like: Any) -> Tensor:
    """The part of such a tensor that belongs to what this process has of another one."""
    part: Tensor = spread(whole, like).to_local()
    return part


def from_part(part: Tensor, like: Any) -> Any:
    """The tensor of which each process has made a part, placed as another one."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def cuts(weight: Any) -> list[int | None] | None:
    """For each dimension of the mesh, that of the weight which it cuts into equal parts, or None for copies.

    None for a weight in parts that are not equal, or cut in another way.
    """
    from torch.distributed.tensor import Replicate, Shard

    found: list[int | None] = []
    parts = [1] * weight.ndim
    for size, placement in zip(weight.device_mesh.shape, weight.placements, strict=True):
        if type(placement) is Shard:
            parts[placement.dim] *= size
            found.append(placement.dim)
        elif type(placement) is Replicate:
            found.append(None)
        else:
            return None
    equal = all(size % count == 0 < size for size, count in zip(weight.shape, parts, strict=True))
    return found if equal else None


def places(weight: Any, dim: int) -> Tensor:
    """Where along a dimension the part of this process lies in the whole weight."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    numbers = torch.arange(weight.shape[dim], dtype=torch.int64, device=weight.device)
    line = DTensor.from_local(numbers, weight.device_mesh, _replicated(weight), run_check=False)
    own = [Shard(0) if type(one) is Shard and one.dim == dim else Replicate() for one in weight.placements]
    return line.redistribute(placements=own).to_local()


def in_one_piece(weight: Tensor) -> Tensor:
    """The whole weight, whether processes have parts of it or not."""
    return gathered(weight) if is_dtensor(weight) else weight


def is_partial(weight: Any) -> bool:
    """Whether the weight is the sum of what the processes have."""
    return any(placement.is_partial() for placement in weight.placements)


def largest_of(values: Tensor, weight: Any, mesh_dims: Sequence[int]) -> Tensor:
    """The largest of the values that the processes along some dimensions of the weight's mesh have."""
    largest = values.contiguous()
    for dim in mesh_dims:
        largest = largest.clone()
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=weight.device_mesh.get_group(dim))
    return largest


def values_of_first(values: list[Any], weight: Any) -> list[Any]:
    """The values of Python that the first process of the weight's mesh has."""
    told = list(values)
    for group in map(weight.device_mesh.get_group, range(weight.device_mesh.ndim)):
        dist.broadcast_object_list(told, dist.get_global_rank(group, 0), group=group)
    return told


def of_first(numbers: Tensor, weight: Any) -> Tensor:
    """The numbers that the first process of the weight's mesh has, on the CPU."""
    mesh = weight.device_mesh
    told = numbers.to(mesh.device_type, copy=True)
    for dim in range(mesh.ndim):
        group = mesh.get_group(dim)
        dist.broadcast(told, dist.get_global_rank(group, 0), group=group)
    return told.cpu()
