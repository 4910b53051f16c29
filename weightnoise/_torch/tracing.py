"""Functions that Dynamo calls while it traces, and does not trace."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def outside_graphs(function: FunctionT) -> FunctionT:
    """Let compiled code leave its graph to call a function, which runs as it stands, as do all that it calls.

    As `torch.compiler.disable` does, which imports the compiler: here it is called once that is there.
    """

    @functools.wraps(function)
    def called(*args: Any) -> Any:
        disable: Any = torch.compiler.disable
        return (disable(function) if "torch._dynamo" in sys.modules else function)(*args)

    called._torchdynamo_disable = True  # type: ignore[attr-defined]
    return called  # type: ignore[return-value]


def while_tracing(function: FunctionT) -> FunctionT:
    """Let Dynamo call a function when it traces a call of it, and take what it returns for a constant.

    As `torch.compiler.assume_constant_result` does, which imports the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def traced_frames() -> Iterator[Any]:
    """What Dynamo knows of the functions that it is tracing, innermost first, found on Python's stack."""
    translator: Any = getattr(sys.modules.get("torch._dynamo.symbolic_convert"), "InstructionTranslatorBase", ())
    frame, last = sys._getframe(1), None
    while frame is not None:
        running = frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
        if isinstance(running, translator) and running is not last:
            last = running
            yield running
        frame = frame.f_back  # type: ignore[assignment]


def traced_object(traced: Any, name: str) -> Any:
    """The object of a local variable of a function that Dynamo is tracing; None where it is none."""
    return getattr(traced.symbolic_locals.get(name), "value", None)


def leave_to_python(why: str) -> None:
    """Within a function that Dynamo calls while it traces: have it leave what it compiles to Python."""
    raise sys.modules["torch._dynamo.exc"].SkipFrame(why)


def trace_again() -> None:
    """Within a function that Dynamo calls while it traces: have it begin anew, as something is known now."""
    raise sys.modules["torch._dynamo.exc"].UnspecializeRestartAnalysis
