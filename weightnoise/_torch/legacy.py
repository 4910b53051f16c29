"""Additions that torch before 2.9 needs: delete them when 2.9 is the oldest supported version."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from weightnoise._torch.tracing import while_tracing

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

NEEDED = torch.__version__ < "2.9"  # Not as text: torch's own class compares.

# In 2.6 and before one flag stands for all that runs in Python to be compiled, which exports alone are.
_FLAG = "_is_exporting_flag" if hasattr(torch.compiler, "_is_exporting_flag") else "_is_compiling_flag"


def run_by_dynamo(function: FunctionT) -> FunctionT:
    """Have Dynamo call a function while it traces, and not trace it: it cannot raise errors of ours."""
    return while_tracing(function) if NEEDED else function


@run_by_dynamo
def skip_before_2_9(why: str) -> None:
    """Have Dynamo leave the frame that calls this to Python, or say why where it must not (``fullgraph=True``)."""
    if NEEDED:
        raise sys.modules["torch._dynamo.exc"].SkipFrame(why)


class _AskedByDynamo(types.ModuleType):
    """Properties that Dynamo reads while it traces: it looks into every property but those of a Python module."""

    @property
    def exports(self) -> bool:
        """Whether Dynamo is tracing for `torch.export`."""
        symbolic_convert: Any = sys.modules.get("torch._dynamo.symbolic_convert")
        running = getattr(symbolic_convert and symbolic_convert.tls, "current_tx", None)
        return running is not None and bool(running.export)


_DYNAMO = _AskedByDynamo("_DYNAMO")


def is_exporting() -> bool:
    """Whether `torch.export` is running. torch's own function takes compiling for exporting, up to 2.8."""
    # A strict export has Dynamo trace the model first, without the flag. Layers that it does not trace it runs, as
    # copies that are inside no context, for the shapes alone: no export, whatever the flag.
    if torch.compiler.is_dynamo_compiling():
        return _DYNAMO.exports
    return bool(getattr(torch.compiler, _FLAG)) and not _DYNAMO.exports


def hides_forward(context: Any) -> bool:
    """Whether a region is one of `torch.distributed._composable.checkpoint` where torch does not tell its forward.

    Its forward runs in hooks of the module, in no frame, and torch before 2.7 does not tell the open hooks.

    Args:
        context: in which the region is computed again.
    """
    if hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"):
        return False
    return getattr(getattr(context, "gen", None), "__name__", "") == "_no_hook"
