"""What the checks that torchrun starts have in common: a model, its single-process reference, comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import weightnoise as wn

try:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
except ImportError:  # torch 2.5
    from torch.distributed._composable.fsdp import MixedPrecisionPolicy, fully_shard  # noqa: F401

RANKS = 2
GAUSSIAN = wn.Gaussian(0.3, relative_to="absmax", per=0)

Check = Callable[[], None]


def make() -> nn.Sequential:
    """The same weights in every process, whatever its seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def batch(rank: int) -> Tensor:
    """The examples of one rank."""
    return torch.linspace(-1, 1, 8).reshape(2, 4) + rank


def own() -> Tensor:
    """The examples of this process."""
    return batch(dist.get_rank())


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """Any loss that uses every output."""
    loss: Tensor = model(x).float().square().mean()
    return loss


def whole(tensor: Tensor | None) -> Tensor:
    """A tensor that may be sharded, in one piece."""
    assert tensor is not None
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach().clone()


def gradients(model: nn.Module) -> list[Tensor]:
    """In the order of the parameters, whole."""
    return [whole(parameter.grad) for parameter in model.parameters()]


def weights(model: nn.Module) -> list[Tensor]:
    """In the order of the parameters, whole."""
    return [whole(parameter) for parameter in model.parameters()]


def expected_gradients(
    spec: Any, seeds: list[int], dtype: torch.dtype = torch.float32, **options: Any
) -> list[Tensor]:
    """The mean over the ranks of what one process computes by itself."""
    found: list[list[Tensor]] = []
    for rank in range(RANKS):
        model = make().to(dtype)
        if spec is not None:
            wn.add_weight_noise(model, spec, **options)
        torch.manual_seed(seeds[rank])
        loss_of(model, batch(rank).to(dtype)).backward()
        found.append(gradients(model))
    return [torch.stack(parts).mean(dim=0) for parts in zip(*found, strict=True)]


def assert_all_close(found: list[Tensor], expected: list[Tensor], **tolerance: Any) -> None:
    """The same tensors up to rounding."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.to(one.dtype), **tolerance)


def assert_ranks_agree(tensors: list[Tensor]) -> None:
    """Bit for bit the same in every process."""
    for tensor in tensors:
        assert len(set(gathered(tensor))) == 1


def assert_ranks_differ(tensor: Tensor) -> None:
    """Not the same in any two processes."""
    assert len(set(gathered(tensor))) == RANKS


def gathered(tensor: Tensor) -> list[tuple[float, ...]]:
    """What every process has."""
    everywhere = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, tensor.detach().contiguous())
    return [tuple(each.flatten().tolist()) for each in everywhere]
