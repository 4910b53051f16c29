"""Refusing to freeze one draw into an exported or traced graph."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import _symbolic_trace

from weightnoise._errors import ExportError
from weightnoise._torch import legacy as _legacy
from weightnoise._torch.legacy import run_by_dynamo


def refuse_export(kind: str, name: str) -> None:
    """Raise `ExportError` while the model is exported or traced; ``kind`` is "weight" or "activation"."""
    if is_traced():
        _refuse(kind, name)


def refuse_onnx(name: str, live: bool) -> None:
    """Raise `ExportError` for noise that is on inside torch.onnx.export, which begins with the text of the model.

    Whatever is raised later, it puts behind an error of its own that asks for a report to PyTorch.
    """
    onnx: Any = sys.modules.get("torch.onnx")  # Not imported for the text of a model.
    if live and onnx is not None and onnx.is_in_onnx_export():
        _refuse("weight", name)


@run_by_dynamo
def _refuse(kind: str, name: str) -> None:
    raise ExportError(_EXPORT.format(name=name, kind=kind, title=kind.capitalize()))


_EXPORT = (
    "{title} noise is on for '{name}' while the model is exported or traced, and would be drawn inside the "
    "exported graph. Export inside `with weightnoise.no_noise(model):`, or call "
    "`weightnoise.remove_{kind}_noise(model)` first."
)


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
