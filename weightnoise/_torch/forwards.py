"""The work of this thread, found on its stack: a forward, or the upkeep of a module."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from weightnoise._torch.checkpoints import CHECKPOINT_CODES

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
Place: TypeAlias = Literal["forward", "upkeep", "neither"]

_KEPT = "__weightnoise__"
_CALL: CodeType = nn.Module._call_impl.__code__
# A checkpointed function counts as a forward: in the backward it is called again by torch, and by no module.
_CHECKPOINTS = {id(code) for code in CHECKPOINT_CODES.values() if code is not None}
# Code of functions named forward that read a weight for a module, by identity.
_READERS = {id(ParametrizationList.forward.__code__)}

# Lightning calls these directly.
_STEPS = {"training_step", "validation_step", "test_step", "predict_step"}
# Methods that move, copy, save, load, describe or initialise a module.
_UPKEEP = {name for name, method in vars(nn.Module).items() if inspect.isfunction(method)}
_UPKEEP -= {"__init__", "forward", "_call_impl", "_wrapped_call_impl", "_slow_forward", "__getattr__"}
_UPKEEP |= {"reset_parameters", "__getstate__", "__copy__", "__deepcopy__", "__reduce_ex__"}

# By which DDP puts DTensors in the place of their parts, in a hook of its first forward.
PUTS_PARTS = {"_update_module_param"}


def reads_weight(function: FunctionT) -> FunctionT:
    """Register a method named forward that is no forward, but reads a weight for one."""
    _READERS.add(id(function.__code__))
    return function


def is_reader(code: CodeType) -> bool:
    """Whether code is that of a method named forward that reads a weight for one."""
    return id(code) in _READERS


class Found(NamedTuple):
    """The work of a thread, and the frame of the function that says so."""

    place: Place
    frame: FrameType | None = None


def place() -> Found:
    """Tell whether the innermost function that counts is part of a forward or of the upkeep of a module."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        name = code.co_name
        if id(code) in _READERS:
            frame = _without_call(frame)
        elif code is _CALL or name == "forward" or id(code) in _CHECKPOINTS:
            return Found("forward", frame)
        elif name in PUTS_PARTS:
            return Found("upkeep", frame)
        elif (name in _STEPS or name in _UPKEEP) and _class_of_method(frame) is not None:
            return Found("forward" if name in _STEPS else "upkeep", frame)
        frame = frame.f_back if frame is not None else None
    return Found("neither")


def of_this_call(frame: FrameType) -> dict[Any, Any]:
    """A mapping that lives as long as the call that runs in a frame."""
    found: dict[Any, Any] = frame.f_locals.setdefault(_KEPT, {})  # Beside the variables of the function.
    return found


def has_own_forward(module: nn.Module) -> bool:
    """Whether calls of a module run a forward of its class, or one of the instance that opens a scope."""
    own = vars(module).get("forward")
    if own is not None:
        return getattr(own, "opens_scope", False)
    return inspect.unwrap(type(module).forward) is not nn.Module.forward


class Reading(NamedTuple):
    """A method of a module that reads a weight: its frame, and its name with that of its class."""

    frame: FrameType
    method: str


def method_that_reads(library: str, but: tuple[str, ...]) -> Reading | None:
    """The innermost function outside of a library, if it is a method of a module that torch did not write.

    Args:
        library: the package that asks.
        but: None too for a method whose name begins with one of these, and for what that calls.
    """
    reading = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_name
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if reading is None and package != library and not name.startswith("<"):  # Comprehensions and lambdas.
            cls = None if package == "torch" else _class_of_method(frame)
            if cls is None:
                return None
            reading = Reading(frame, f"{cls.__name__}.{name}")
        if name.lstrip("_").startswith(but) and _class_of_method(frame) is not None:
            return None
        frame = frame.f_back
    return reading


def _class_of_method(frame: FrameType) -> type | None:
    """The class of modules that has the method that a frame runs, if it runs one."""
    # For few frames: on their local variables, looking at them keeps a hold until the frame is over.
    code = frame.f_code
    module = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    if not isinstance(module, nn.Module):
        return None
    methods = ((cls, vars(cls).get(code.co_name)) for cls in type(module).__mro__)
    own = (cls for cls, method in methods if callable(method) and _code_of(method) is code)
    return next(own, None)


def _code_of(method: Callable[..., Any]) -> CodeType | None:
    return getattr(inspect.unwrap(method), "__code__", None)


def _without_call(frame: FrameType) -> FrameType | None:
    """The frame that called a module whose forward runs in ``frame``; ``frame`` where no module was called."""
    caller = frame.f_back
    if caller is not None and caller.f_code.co_name == "inner":  # Where the module has hooks.
        caller = caller.f_back
    return caller if caller is not None and caller.f_code is _CALL else frame
