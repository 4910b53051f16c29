"""What several hazard tests need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Counting:
    """A law that counts its draws; every draw is the next whole number."""

    draws: list[int] = field(default_factory=list)

    def draw(self, weight: Tensor) -> Tensor:
        self.draws.append(weight.numel())
        return torch.full((), float(len(self.draws)), dtype=weight.dtype)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        return weight + factor * noise


class Calls(nn.Module):
    """A module whose forward calls a function."""

    def forward(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)


def in_forward(function: Callable[..., T], *args: Any) -> T:
    """What a function returns when the forward of some module calls it: reads are noisy there."""
    result: T = Calls()(function, *args)
    return result


def seen(owner: Any, name: str = "weight") -> Tensor:
    """The weight as the forward of another module sees it now: a draw of its own while noise is on."""
    return in_forward(getattr, owner, name)


def captured(model: nn.Module, x: Tensor) -> tuple[Any, Tensor]:
    """A CUDA graph of a forward without gradients, and the output that each replay writes."""
    side: Any = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        model(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        output: Tensor = model(x)
    return graph, output
