"""Tests of the documentation."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of the docs as a module, for the length of a test."""
    monkeypatch.syspath_prepend(str(DOCS))  # Where it finds others, as when it is run.
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # Dataclasses look up their module.
    spec.loader.exec_module(module)
    return module
