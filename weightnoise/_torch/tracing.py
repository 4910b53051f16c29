"""Functions that Dynamo calls while it traces, and does not trace."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
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


def untraced(function: FunctionT) -> FunctionT:
    """Let Dynamo leave a call of a function to Python; for calls from compiled code alone, as it imports Dynamo.

    As `torch.compiler.disable` does, which imports it at once.
    """
    return torch._disable_dynamo(function)  # type: ignore[attr-defined, return-value]
