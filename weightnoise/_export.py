"""Refusing to freeze one draw into an exported or traced graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import _symbolic_trace

from weightnoise._errors import ExportError

# torch.compiler.is_exporting is newer than the oldest torch that we support.
_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]
_is_fx_tracing: Callable[[], bool] = getattr(
    _symbolic_trace, "is_fx_symbolic_tracing", _symbolic_trace.is_fx_tracing
)
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def refuse_export(kind: str, name: str) -> None:
    """Raise `ExportError` while the model is exported or traced; ``kind`` is "weight" or "activation"."""
    if _is_tracing() or _is_exporting() or _is_fx_tracing():
        raise ExportError(_EXPORT.format(name=name, kind=kind, title=kind.capitalize()))


_EXPORT = (
    "{title} noise is on for '{name}' while the model is exported or traced, and would be drawn inside the "
    "exported graph. Export inside `with weightnoise.no_noise(model):`, or call "
    "`weightnoise.remove_{kind}_noise(model)` first."
)
