"""Refusing to freeze one draw into an exported or traced graph."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import _symbolic_trace

from weightnoise._errors import ExportError
from weightnoise._torch import legacy as _legacy
from weightnoise._torch.legacy import run_by_dynamo


def refuse_export(kind: str, name: str, module: nn.Module | None = None) -> None:
    """Raise `ExportError` while the model is exported or traced; ``kind`` is "weight" or "activation".

    Args:
        kind: the kind of noise.
        name: of the parameter or module.
        module: that which is called, where the text of the model says nothing of its noise.
    """
    if is_traced():
        if module is not None and _in_onnx():
            _refuse_in_text(kind, name, module)
        _refuse(kind, name)


def refuse_onnx(name: str, live: bool) -> None:
    """Raise `ExportError` for noise that is on inside torch.onnx.export, which begins with the text of the model.

    Whatever is raised later, it puts behind an error of its own that asks for a report to PyTorch.
    """
    if live and _in_onnx():
        _refuse("weight", name)


def _in_onnx() -> bool:
    onnx: Any = sys.modules.get("torch.onnx")  # Not imported for the question.
    return onnx is not None and bool(onnx.is_in_onnx_export())


def _refuse_in_text(kind: str, name: str, module: nn.Module) -> None:
    """Raise from the text of a module, once: torch.onnx.export asks for that of the model after each failure."""
    own = vars(module)
    before = own.get("extra_repr")

    def text() -> str:
        own.pop("extra_repr", None)
        if before is not None:
            own["extra_repr"] = before
        if _in_onnx():
            _refuse(kind, name)
        return module.extra_repr()

    own["extra_repr"] = text


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
