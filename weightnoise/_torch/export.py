"""Refusing to freeze one draw into an exported or traced graph."""

from __future__ import annotations

from weightnoise._errors import ExportError
from weightnoise._torch.legacy import run_by_dynamo
from weightnoise._torch.private import is_traced


def refuse_export(kind: str, name: str) -> None:
    """Raise `ExportError` while the model is exported or traced; ``kind`` is "weight" or "activation"."""
    if is_traced():
        _refuse(kind, name)


@run_by_dynamo
def _refuse(kind: str, name: str) -> None:
    raise ExportError(_EXPORT.format(name=name, kind=kind, title=kind.capitalize()))


_EXPORT = (
    "{title} noise is on for '{name}' while the model is exported or traced, and would be drawn inside the "
    "exported graph. Export inside `with weightnoise.no_noise(model):`, or call "
    "`weightnoise.remove_{kind}_noise(model)` first."
)
