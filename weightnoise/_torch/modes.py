"""The modes of torch around an operation, and whether a tensor is what it looks like."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.fx import _symbolic_trace
from torch.utils._python_dispatch import _disable_current_modes

from weightnoise._torch import legacy

PLAIN = (Tensor, nn.Parameter)
_STRIDED = torch.strided


_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_transformation: Callable[[], object] = torch._C._functorch.peek_interpreter_stack


def sees_operations() -> bool:
    """Whether a dispatch mode sees every operation: fake tensors, tracing, counters, selective checkpoints."""
    return _dispatch_modes() > 0


def in_transform() -> bool:
    """Whether a transformation of `torch.func` is running: tensors may be other than they look."""
    return _transformation() is not None


def runs_eagerly() -> bool:
    """Whether operations do what they say on the tensors that they get: no compiler, mode or transformation."""
    return not torch.compiler.is_compiling() and _dispatch_modes() == 0 and _transformation() is None


def computes_numbers() -> bool:
    """Whether operations on plain tensors make numbers: no compiler or transformation runs; a mode may look on."""
    return not torch.compiler.is_compiling() and _transformation() is None


def outside_transforms() -> AbstractContextManager[Any]:
    """Operations inside do what they say on plain tensors, whatever transformation of `torch.func` is running."""
    return temporarily_clear_interpreter_stack() if in_transform() else nullcontext()


@contextmanager
def by_itself() -> Iterator[None]:
    """As `outside_transforms`, past the `vmap` of autograd too, and no dispatch mode sees what is done inside."""
    around = torch._C._vmapmode_increment_nesting()  # And this one: nothing tells the number alone.
    for _ in range(around):
        torch._C._vmapmode_decrement_nesting()
    try:
        with outside_transforms(), _disable_current_modes() if sees_operations() else nullcontext():
            yield
    finally:
        for _ in range(around - 1):
            torch._C._vmapmode_increment_nesting()


def in_dual_level() -> bool:
    """Whether forward-mode differentiation is on, outside of `torch.func`: tensors may carry tangents."""
    return forward_ad._current_level >= 0


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is its memory and nothing else: numbers side by side, which mean what they say.

    No subclass, whose numbers may be elsewhere; no other layout; not the negative of what its memory holds; and
    neither one that functionalization has wrapped nor one of zeros that have no memory.
    """
    return (
        type(tensor) in PLAIN
        and tensor.layout is _STRIDED
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and (tensor.data_ptr() != 0 or not (torch._is_functional_tensor(tensor) or tensor._is_zerotensor()))
    )


def is_strided(tensor: Tensor) -> bool:
    """Whether a tensor is numbers in a storage, at a stride in each dimension; they may be fake."""
    return (type(tensor) in PLAIN or isinstance(tensor, FakeTensor)) and tensor.layout is _STRIDED


def has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor has more than a shape."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def is_captured(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being captured on the device of a tensor, so that no number can be looked at."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def number_of(value: float | Tensor) -> float:
    """The number of a tensor, past what watches the functions of torch."""
    with torch._C.DisableTorchFunction():
        return float(value)


def in_backward() -> bool:
    """Whether autograd is running a backward: a forward in it is a recomputation."""
    return _graph_task() != -1


def saved_tensors_hooks_around() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None:
    """The innermost saved-tensor hooks that are open; None where there are none, and where torch does not tell."""
    hooks = _top_hooks(True)
    return None if hooks is _UNKNOWN else hooks


def can_save_by_hooks() -> bool:
    """Whether saved-tensor hooks are allowed: some contexts forbid them, and torch raises when one is opened."""
    allowed: bool = torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]
    return allowed


def hooks_of_others() -> bool:
    """Whether saved-tensor hooks are open that have no attribute ``outermost``; yes where torch does not tell."""
    hooks = _top_hooks(True)
    return hooks is not None and (hooks is _UNKNOWN or not getattr(hooks[0], "outermost", False))


def may_be_in_checkpoint() -> bool:
    """Whether this thread may be in a checkpointed region; cheap, and yes more often than it is."""
    # A backward; hooks, as a checkpoint has; the forward of an autograd Function, as a reentrant checkpoint is.
    return _graph_task() != -1 or hooks_of_others() or not (_forward_mode() or _inference_mode())


def may_matter() -> bool:
    """Whether anything goes on that a read of a noisy weight has to ask about: a compiler, a tracer, a checkpoint.

    One call for what several functions tell apart, since most reads are in none of these; yes too often.
    """
    return (
        _is_compiling()
        or legacy.NEEDED
        or _graph_task() != -1
        # As `hooks_of_others`.
        or (
            (hooks := _top_hooks(True)) is not None
            and (hooks is _UNKNOWN or not getattr(hooks[0], "outermost", False))
        )
        or not (_forward_mode() or _inference_mode())
        or _compiler._is_exporting_flag
        or _jit_traces()
        or (_symbolic_trace._is_fx_tracing_flag if _HAS_FLAG else _symbolic_trace.is_fx_symbolic_tracing())
        or _dispatch_modes() > 0
        or _transformation() is not None
    )


_UNKNOWN: Any = object()
# torch 2.15 has one flag for each thread, and a function for it.
_HAS_FLAG = hasattr(_symbolic_trace, "_is_fx_tracing_flag")
_compiler = torch.compiler
_is_compiling: Callable[[], bool] = torch.compiler.is_compiling
_jit_traces: Callable[[], bool] = torch._C._is_tracing
_graph_task: Callable[[], int] = torch._C._current_graph_task_id
_forward_mode: Callable[[], bool] = torch._C._is_fwd_grad_enabled
# There the first is off too, and no backward comes.
_inference_mode: Callable[[], bool] = torch.is_inference_mode_enabled
# torch 2.6 does not tell: there may be hooks.
_top_hooks: Callable[[bool], Any] = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore_is_tracing: _UNKNOWN
)
