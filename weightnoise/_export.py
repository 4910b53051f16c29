"""Refusing to freeze one draw into an exported or traced graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import _symbolic_trace

from weightnoise._errors import ExportError
from weightnoise._private import is_exporting

_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]


def _is_fx_tracing() -> bool:
    return _symbolic_trace.is_fx_tracing() and not torch.compiler.is_compiling()


# In newer versions of torch the old function logs a warning, and the same is there as one.
_is_tracing_symbols: Callable[[], bool] = getattr(_symbolic_trace, "is_fx_symbolic_tracing", _is_fx_tracing)


def refuse_export(kind: str, name: str) -> None:
    """Raise `ExportError` while the model is exported or traced; ``kind`` is "weight" or "activation"."""
    if _is_tracing() or is_exporting() or _is_tracing_symbols():
        raise ExportError(_EXPORT.format(name=name, kind=kind, title=kind.capitalize()))


_EXPORT = (
    "{title} noise is on for '{name}' while the model is exported or traced, and would be drawn inside the "
    "exported graph. Export inside `with weightnoise.no_noise(model):`, or call "
    "`weightnoise.remove_{kind}_noise(model)` first."
)
