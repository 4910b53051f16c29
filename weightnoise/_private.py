"""What torch does not publish and this package asks it all the same: the place to look when torch changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import _symbolic_trace

from weightnoise import _legacy


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


def is_dtensor(weight: object) -> bool:
    """Whether it is a tensor over several processes."""
    # By its interface: importing torch.distributed.tensor takes long, and its place has moved.
    return hasattr(weight, "device_mesh") and hasattr(weight, "placements")


def storage_of(tensor: Tensor) -> int:
    """What tells the memory of a tensor from that of others, as long as it lives; fake tensors have no address."""
    number: int = tensor.untyped_storage()._cdata
    return number


def convolve(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor, weight: Tensor) -> Tensor:
    """The convolution of a layer, its padding included, with another weight and no bias."""
    product: Tensor = layer._conv_forward(inputs, weight, None)
    return product


def _is_exporting() -> bool:
    return torch.compiler._is_exporting_flag


is_exporting: Callable[[], bool] = _legacy.is_exporting if _legacy.NEEDED else _is_exporting


def _is_symbolic() -> bool:
    return _symbolic_trace.is_fx_tracing() and not torch.compiler.is_compiling()


_is_jit_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]
# In newer versions of torch the old function logs a warning, and the same is there as one.
_is_fx_tracing: Callable[[], bool] = getattr(_symbolic_trace, "is_fx_symbolic_tracing", _is_symbolic)


def is_traced() -> bool:
    """Whether an export or a tracer records what runs; `torch.compile` does not count."""
    return _is_jit_tracing() or is_exporting() or _is_fx_tracing()
