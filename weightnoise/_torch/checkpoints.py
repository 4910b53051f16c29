"""The checkpointed regions that a thread is in, found on its stack, and those that wait for their backward."""

from __future__ import annotations

import gc
import inspect
import sys
import weakref
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch.utils import checkpoint as _checkpoint

from weightnoise._torch import legacy
from weightnoise._torch.modes import in_backward, saved_tensors_hooks_around


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
        """The function that torch calls in the backward."""
        function: Callable[..., Any] = getattr(self.holder, self.name)
        return function

    @function.setter
    def function(self, function: Callable[..., Any]) -> None:
        setattr(self.holder, self.name, function)

    @property
    def owner(self) -> object:
        """The object whose method is checkpointed; None where it is no method or torch does not keep it."""
        function = _kept(self.function, "fn")
        # No truth value is asked for: compiled modules have one only where they have a length.
        return getattr(self.function if function is None else function, "__self__", None)

    @property
    def has_own_graph(self) -> bool:
        """Whether the recomputation has a backward of its own: a reentrant checkpoint."""
        return self.name == "run_function"

    @property
    def repeats_numbers(self) -> bool:
        """Whether torch puts the random state back for the recomputation."""
        if self.has_own_graph:
            return bool(self.holder.preserve_rng_state)
        return bool(_kept(self.function, "preserve_rng_state"))


def _kept(function: Any, name: str) -> Any:
    """Return the variable that a closure of torch's keeps under a name; None where it keeps none."""
    code = getattr(function, "__code__", None)
    if code is None or name not in code.co_freevars:
        return None
    return function.__closure__[code.co_freevars.index(name)].cell_contents


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
        # From torch 2.15 on, `checkpoint` calls this.
        "_checkpoint_impl" if hasattr(_checkpoint, "_checkpoint_impl") else "checkpoint",
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
    if None in CHECKPOINT_CODES.values() and in_backward():
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
            if legacy.hides_forward(_kept(getattr(one.function, "function", one.function), "recompute_context")):
                raise RuntimeError(_HIDDEN_CHECKPOINT.format(version=torch.__version__))
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
_HIDDEN_CHECKPOINT = (
    "A forward with noise is computed again in the backward of torch.distributed's checkpoint of a module, and "
    "torch {version} does not tell what held in the forward. Use torch.utils.checkpoint, or torch 2.7."
)


def _started(steps: Any) -> Checkpoint | None:
    """The checkpoint whose function runs, from the generator that torch steps around it."""
    inside = steps.gi_frame if steps is not None else None
    holder = None if inside is None else inside.f_locals.get("new_frame")
    return None if holder is None else Checkpoint(holder, "recompute_fn", False)


class _Waiting:
    """The objects of one class of torch's that are alive: the checkpointed regions whose graph is.

    Each holds a reference to its class, so that the count of these tells whether to look through the memory.
    """

    def __init__(self, kind: type, name: str) -> None:
        self._kind, self._name = kind, name
        self._count = -1
        self._found: list[weakref.ref[Any]] = []

    def all(self) -> list[Checkpoint]:
        """Each as a checkpoint that is not running."""
        holders = [reference() for reference in self._found]
        count = sys.getrefcount(self._kind)
        if count != self._count or any(holder is None for holder in holders):
            holders = [one for one in gc.get_referrers(self._kind) if type(one) is self._kind]
            self._found = [weakref.ref(holder) for holder in holders]
            self._count = sys.getrefcount(self._kind)
        return [Checkpoint(holder, self._name, again=False) for holder in holders if hasattr(holder, self._name)]


_WAITING = [
    _Waiting(kind, name)
    for kind, name in (
        (getattr(_checkpoint, "_CheckpointFrame", None), "recompute_fn"),
        (getattr(getattr(_checkpoint, "CheckpointFunction", None), "_backward_cls", None), "run_function"),
    )
    if kind is not None
]


def waiting_checkpoints() -> list[Checkpoint]:
    """The checkpointed regions of all threads that a backward may compute again."""
    return [one for waiting in _WAITING for one in waiting.all()]
