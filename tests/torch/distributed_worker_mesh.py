"""Tensor parallelism with data parallelism on a mesh of two by two processes."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import weightnoise as wn
from tests.torch.distributed_worker_common import (
    GAUSSIAN,
    assert_all_close,
    fully_shard,
    loss_of,
    whole,
)
from tests.torch.distributed_worker_tensor import LARGE, SMALL, assert_noise_of_one_process


@functools.cache
def both() -> DeviceMesh:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))


def replica() -> int:
    """The number of the copy of the model that this process has a part of."""
    return dist.get_rank() // 2


def place() -> int:
    """The number of its part."""
    return dist.get_rank() % 2


def make(size: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, size))


def batch(size: int, number: int) -> Tensor:
    return torch.linspace(-1, 1, 2 * size).reshape(2, size) + number


def expected_gradients(spec: Any, size: int, seeds: list[int]) -> list[Tensor]:
    """The mean over the replicas of what one process computes by itself."""
    found = []
    for number, seed in enumerate(seeds):
        model = wn.add_weight_noise(make(size), spec)
        torch.manual_seed(seed)
        loss_of(model, batch(size, number)).backward()
        found.append([whole(parameter.grad) for parameter in model.parameters()])
    return [torch.stack(parts).mean(dim=0) for parts in zip(*found, strict=True)]


def own_parts(tensors: list[Tensor]) -> list[Tensor]:
    """The parts of a colwise and of a rowwise layer that this process has."""
    for number, dim in enumerate((0, 0, 1)):
        tensors[number] = tensors[number].chunk(2, dim)[place()]
    return tensors


SPECS = (0.2, GAUSSIAN, wn.Uniform(0.2, relative_to="absmax", per=1), wn.Gaussian(0.2, relative_to="rms"))


def check_weights_over_two_dimensions() -> None:
    layouts: list[list[Any]] = [
        [Shard(0), Shard(1)],
        [Shard(1), Shard(0)],
        [Shard(0), Shard(0)],
        [Replicate(), Shard(1)],
        [Shard(0), Replicate()],
    ]
    for spec, shape, layout in itertools.product(SPECS, (SMALL, LARGE), layouts):
        assert_noise_of_one_process(spec, shape, layout, both(), before=layout[0] == Shard(0))


def parallel(model: nn.Module) -> nn.Module:
    return parallelize_module(model, both()["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})


def shard(model: nn.Module) -> nn.Module:
    for layer in (model[0], model[2]):  # type: ignore[index]
        fully_shard(layer, mesh=both()["data"])
    fully_shard(model, mesh=both()["data"])
    return model


def build(spec: Any, size: int, order: str, wrap: Any) -> tuple[nn.Module, nn.Module, list[nn.Parameter]]:
    """The model, what was made of it by wrapping, and the Parameters; noise comes first, second or last."""
    model: nn.Module = make(size)
    if order == "first":
        wn.add_weight_noise(model, spec)
    parallel(model)
    if order == "second":
        wn.add_weight_noise(model, spec)
    wrapped = wrap(model)
    parameters = list(model.parameters())
    if order == "last":
        wn.add_weight_noise(model, spec)
    return model, wrapped, parameters


def step(model: nn.Module, size: int, seeds: list[int], parameters: list[nn.Parameter]) -> list[Tensor]:
    """The gradients of one step. The processes of a replica have seeds of their own; that of the first counts."""
    for parameter in parameters:
        parameter.grad = None
    torch.manual_seed(seeds[replica()] + 100 * place())
    loss_of(model, batch(size, replica())).backward()
    return [whole(parameter.grad) for parameter in parameters]


def check_fully_shard() -> None:
    for size, spec, order in itertools.product((8, 64), (GAUSSIAN, 0.1, wn.DropConnect(0.3)), ORDERS):
        _, model, parameters = build(spec, size, order, shard)
        for seeds in ([5, 6], [5, 5]):
            assert_all_close(step(model, size, seeds, parameters), expected_gradients(spec, size, seeds))


ORDERS = ("first", "second", "last")


def check_fully_shard_with_contexts() -> None:
    for size in (8, 64):
        _, model, _ = build(GAUSSIAN, size, "first", shard)
        single = wn.add_weight_noise(make(size), GAUSSIAN)
        x = batch(size, replica())
        for _ in range(2):
            with wn.hold_noise(model, seed=3), wn.hold_noise(single, seed=3):
                torch.testing.assert_close(model(x), single(x))
        torch.manual_seed(dist.get_rank())
        with wn.hold_noise(model):  # Each replica has a draw of its own, and its processes have the same.
            outputs = [model(batch(size, 0)) for _ in range(2)]
        assert torch.equal(*outputs)
        group = both()["tensor"].get_group()
        of_replica = [torch.empty_like(outputs[0]) for _ in range(2)]
        dist.all_gather(of_replica, outputs[0].detach(), group=group)
        assert torch.equal(*of_replica)
        of_place = [torch.empty_like(outputs[0]) for _ in range(2)]
        dist.all_gather(of_place, outputs[0].detach(), group=both()["data"].get_group())
        assert not torch.equal(*of_place)
        with wn.no_noise(model):
            torch.testing.assert_close(model(x), make(size)(x))
        wn.remove_weight_noise(model)
        torch.testing.assert_close(model(x), make(size)(x))


def wrap_ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model, device_mesh=both()["data"])


def check_data_parallel() -> None:
    for size, spec, order in itertools.product((8, 64), (GAUSSIAN, 0.1), ORDERS):
        model, wrapped, parameters = build(spec, size, order, wrap_ddp)
        for seeds in ([5, 6], [5, 5]):
            expected = own_parts(expected_gradients(spec, size, seeds))
            assert_all_close(step(wrapped, size, seeds, parameters), expected)
        x, single = batch(size, replica()), wn.add_weight_noise(make(size), spec)
        with wn.hold_noise(model, seed=3), wn.hold_noise(single, seed=3):
            torch.testing.assert_close(wrapped(x), single(x))
        with wn.no_noise(wrapped):
            torch.testing.assert_close(wrapped(x), make(size)(x))
        wn.remove_weight_noise(model)
        torch.testing.assert_close(wrapped(x), make(size)(x))
