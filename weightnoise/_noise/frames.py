"""The draws of the forwards of a module that are running."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import CodeType
from typing import Any, TypeVar

import torch
from torch import Tensor

from weightnoise._random.common import Make, Take, layer_of

# The code of the functions that open a scope for the length of a call, as their local variable ``running``; by
# identity, since code that Dynamo has made cannot be hashed.
OPENERS: dict[int, CodeType] = {}

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

# One parameter in a running forward: its draw, the noisy weight made from it, and what else that was made
# from: the clean weight, its version (inference tensors count none), whether gradients were enabled, and the
# factor. A plain tuple: it is made at every forward.
NOT_DRAWN = "not drawn"
NOTHING: Any = (NOT_DRAWN, None, None, None)  # A memo before there is a draw.


def taken_from(kept: dict[str, Any], tensor_name: str) -> Take:
    """The numbers that a layer has in common, as a running forward has drawn them."""

    def take(name: str, make: Make, device: torch.device) -> Tensor:
        place = f"{layer_of(tensor_name)}: {name} on {device}"
        if place not in kept:
            kept[place] = make(), None, None, None  # As the memo of a parameter, so that checkpoints keep it.
        numbers: Tensor = kept[place][0]
        return numbers

    return take


def opens_frame(function: FunctionT) -> FunctionT:
    """Register a function that opens a scope for the length of a call."""
    OPENERS[id(function.__code__)] = function.__code__
    return function


class Frames(threading.local):
    """The draws of the forwards of one module that are running, innermost last: empty at rest.

    None stands for a stretch in which reads are clean. Per thread, because threads may share a
    model, and because the replicas of `nn.DataParallel` share everything that is no parameter.
    """

    def __init__(self) -> None:
        self.running: list[dict[str, Any] | None] = []

    def __reduce__(self) -> tuple[type[Frames], tuple[()]]:
        return Frames, ()


def was_offloaded(of: Tensor | None, weight: Tensor) -> bool:
    """Whether a weight has lost or got its numbers within a forward: tools that offload weights do that."""
    return of is not None and of is not weight and weight.is_meta is not of.is_meta
