"""Started by torchrun: noise under FSDP. ``-m tests.gpu.fsdp fsdp1|fsdp2 cuda|cpu FILE``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import weightnoise as wn

LAW = wn.Gaussian(0.3, relative_to="absmax", per=0)


def make(device: str) -> nn.Sequential:
    """The same weights in every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32)).to(device)


def fsdp2(device: str) -> str:
    """The mean gradient of the processes is that of one process on the same draws."""
    from torch.distributed.fsdp import fully_shard

    model = wn.add_weight_noise(make(device), LAW)
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    alone = wn.add_weight_noise(make(device), LAW)
    x = torch.linspace(-1, 1, 640, device=device).reshape(10, 64)
    for each in (model, alone):
        torch.manual_seed(5)
        each(x).square().mean().backward()
    for one, other in zip(model.parameters(), alone.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.full_tensor(), other.grad)  # type: ignore[attr-defined]
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model(x)
    return "gradients are those of one process"


def fsdp1(device: str) -> str:
    """It keeps weights in one flat tensor, and is refused by name."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    # Without use_orig_params=True there are no weights with names at all.
    wrapped = FullyShardedDataParallel(make(device), use_orig_params=True, device_id=_device_id(device))
    with pytest.raises(wn.WeightNoiseError, match="fully_shard"):
        wn.add_weight_noise(wrapped, 0.1)
    return "refused by name, as documented"


def _device_id(device: str) -> torch.device | None:
    return torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device("cpu")


def main(way: str, device: str, file: str) -> None:
    """Say on the first process what was found."""
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    if device == "cuda":
        torch.cuda.set_device(dist.get_rank())
    said = {"fsdp1": fsdp1, "fsdp2": fsdp2}[way](device)
    if dist.get_rank() == 0:
        where = "the CPU" if device == "cpu" else torch.cuda.get_device_name()
        Path(file).write_text(f"{said}; {dist.get_world_size()} processes on {where}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
