"""What torch does not publish and this package asks it all the same: the place to look when torch changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def sees_operations() -> bool:
    """Whether a dispatch mode sees every operation: fake tensors, tracing, counters, selective checkpoints."""
    return torch._C._len_torch_dispatch_stack() > 0


def in_transform() -> bool:
    """Whether a transformation of `torch.func` is running: tensors may be other than they look."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def in_backward() -> bool:
    """Whether autograd is running a backward: a forward in it is a recomputation."""
    return torch._C._current_graph_task_id() != -1


def saved_tensors_hooks_around() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None:
    """The innermost saved-tensor hooks that are open; None where there are none, and where torch does not tell."""
    ask: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # Not in torch 2.6.
    return None if ask is None else ask(True)


def convolve(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor, weight: Tensor) -> Tensor:
    """The convolution of a layer, its padding included, with another weight and no bias."""
    product: Tensor = layer._conv_forward(inputs, weight, None)
    return product


def is_exporting() -> bool:
    """Whether `torch.export` is running. torch 2.6 does not tell; in 2.7 and 2.8 Dynamo takes compiling for it."""
    return getattr(torch.compiler, "_is_exporting_flag", False)
