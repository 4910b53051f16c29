"""What torch does not publish and this package asks it all the same: the place to look when torch changes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx import _symbolic_trace
from torch.utils import checkpoint as _checkpoint

from weightnoise._torch import legacy as _legacy

_PLAIN = (Tensor, nn.Parameter)
_STRIDED = torch.strided


def sees_operations() -> bool:
    """Whether a dispatch mode sees every operation: fake tensors, tracing, counters, selective checkpoints."""
    return torch._C._len_torch_dispatch_stack() > 0


def in_transform() -> bool:
    """Whether a transformation of `torch.func` is running: tensors may be other than they look."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def in_dual_level() -> bool:
    """Whether forward-mode differentiation is on, outside of `torch.func`: tensors may carry tangents."""
    return forward_ad._current_level >= 0


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is its memory and nothing else: numbers side by side, which mean what they say.

    No subclass, whose numbers may be elsewhere; no other layout; not the negative of what its memory holds; and
    neither one that functionalization has wrapped nor one of zeros that have no memory.
    """
    return (
        type(tensor) in _PLAIN
        and tensor.layout is _STRIDED
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and (tensor.data_ptr() != 0 or not (torch._is_functional_tensor(tensor) or tensor._is_zerotensor()))
    )


def in_backward() -> bool:
    """Whether autograd is running a backward: a forward in it is a recomputation."""
    return torch._C._current_graph_task_id() != -1


def saved_tensors_hooks_around() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None:
    """The innermost saved-tensor hooks that are open; None where there are none, and where torch does not tell."""
    hooks = _top_hooks(True)
    return None if hooks is _UNKNOWN else hooks


def may_be_in_checkpoint() -> bool:
    """Whether this thread may be in a checkpointed region; cheap, and yes more often than it is."""
    # A backward; hooks, as a checkpoint has; the forward of an autograd Function, as a reentrant checkpoint is.
    return _graph_task() != -1 or _top_hooks(True) is not None or not _forward_mode()


_UNKNOWN: Any = object()
_graph_task: Callable[[], int] = torch._C._current_graph_task_id
_forward_mode: Callable[[], bool] = torch._C._is_fwd_grad_enabled
# torch 2.6 does not tell: there may be hooks.
_top_hooks: Callable[[bool], Any] = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore_is_tracing: _UNKNOWN
)


@dataclass(eq=False)
class Checkpoint:
    """A checkpointed region that is running.

    Attributes:
        holder: an object of torch's that lives as long as the region's graph.
        name: the attribute of the holder that is called in the backward.
        again: whether this is the recomputation.
        opened: the scopes that were opened inside the region.
    """

    holder: Any
    name: str
    again: bool
    opened: list[Any] = field(default_factory=list)

    @property
    def function(self) -> Callable[..., Any]:
        """What torch calls in the backward."""
        function: Callable[..., Any] = getattr(self.holder, self.name)
        return function

    @function.setter
    def function(self, function: Callable[..., Any]) -> None:
        setattr(self.holder, self.name, function)

    @property
    def has_own_graph(self) -> bool:
        """Whether the recomputation has a backward of its own: a reentrant checkpoint."""
        return self.name == "run_function"

    @property
    def repeats_numbers(self) -> bool:
        """Whether torch puts the random state back for the recomputation."""
        if self.has_own_graph:
            return bool(self.holder.preserve_rng_state)
        function: Any = self.function
        cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
        return bool(cells["preserve_rng_state"].cell_contents)


def _code(path: str) -> CodeType | None:
    """The code of a function in torch's module of checkpoints, or of one that is defined in it."""
    found: Any = _checkpoint
    for name in path.split("."):
        if isinstance(found, CodeType):
            found = next((one for one in found.co_consts if getattr(one, "co_name", "") == name), None)
        else:
            found = inspect.unwrap(getattr(found, name, None))  # type: ignore[arg-type]
            found = getattr(found, "__code__", found)
    return found if isinstance(found, CodeType) else None


CHECKPOINT_CODES = {
    path: _code(path)
    for path in (
        "checkpoint",
        "CheckpointFunction.forward",
        "CheckpointFunction.backward",
        "_checkpoint_hook.__init__.pack_hook",
        "_checkpoint_hook.__init__.unpack_hook",
    )
}
_CHECKPOINT, _REENTRANT, _REENTRANT_AGAIN, _PACK, _UNPACK = CHECKPOINT_CODES.values()


def running_checkpoints(openers: Container[int]) -> list[Checkpoint]:
    """The checkpointed regions that this thread is in, innermost first; down to the first recomputation.

    Args:
        openers: the identities of the code of functions that open a scope as their local variable ``running``.
    """
    if None in CHECKPOINT_CODES.values() and _graph_task() != -1:
        raise RuntimeError(_UNKNOWN_CHECKPOINTS.format(version=torch.__version__))
    found: list[Checkpoint] = []
    opened: list[Any] = []
    frame = sys._getframe(1)
    while frame is not None and not (found and found[-1].again):
        code, one = frame.f_code, None
        if id(code) in openers:
            opened.append(frame.f_locals.get("running"))
        elif code is _CHECKPOINT:
            one = _started(frame.f_locals.get("gen"))
        elif code is _REENTRANT or code is _REENTRANT_AGAIN:
            one = Checkpoint(frame.f_locals["ctx"], "run_function", code is _REENTRANT_AGAIN)
        elif code is _UNPACK:
            one = Checkpoint(frame.f_locals["frame"], "recompute_fn", True)
        if one is not None:
            one.opened = list(opened)
            found.append(one)
        frame = frame.f_back  # type: ignore[assignment]
    around = saved_tensors_hooks_around()
    if around is not None and getattr(around[0], "__code__", None) is _PACK:
        # torch.distributed's checkpoint of a module runs in hooks of the module, and in no frame.
        pack: Any = around[0]
        holder = pack.__closure__[0].cell_contents
        if all(holder is not one.holder for one in found):
            found.insert(0, Checkpoint(holder, "recompute_fn", False, opened))
    return found


_UNKNOWN_CHECKPOINTS = (
    "A forward with noise is computed again in a backward, and weightnoise does not know the checkpoints of torch "
    "{version}: it cannot tell what held in the forward. Train without checkpoints, or with another torch."
)


def _started(steps: Any) -> Checkpoint | None:
    """The checkpoint whose function runs, from the generator that torch steps around it."""
    inside = steps.gi_frame if steps is not None else None
    holder = None if inside is None else inside.f_locals.get("new_frame")
    return None if holder is None else Checkpoint(holder, "recompute_fn", False)


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
