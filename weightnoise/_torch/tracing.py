"""Functions that Dynamo calls while it traces, and does not trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def while_tracing(function: FunctionT) -> FunctionT:
    """Let Dynamo call a function when it traces a call of it, and take what it returns for a constant.

    As `torch.compiler.assume_constant_result` does, which imports the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
