"""Tests of the documentation."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"

# What is shorter in a run of tests than in the docs: fewer steps, seeds and draws, as many as the page needs to
# find what it says. A run with --product has them all.
SHORTER: dict[str, dict[str, str]] = {
    "guides/analog-language-model.md": {"STEPS = 600, 250": "STEPS = 200, 80", "CHIPS = 8": "CHIPS = 4"},
    "guides/batch-normalisation.md": {"range(5)": "range(4)", "range(12)": "range(8)", "0.3], 8": "0.3], 4"},
    "guides/exploration.md": {"episodes=150": "episodes=80"},
    "guides/hardware-aware.md": {"draws=10": "draws=4"},
    "guides/strength.md": {"range(3)": "range(1)", "draws=20": "draws=5"},
    "guides/vectorised-exploration.md": {"range(1500)": "range(800)"},
    "examples/cartpole.ipynb": {"min(len(moves), 40)": "min(len(moves), 20)"},
    "examples/gradient-penalty.ipynb": {"steps=200)": "steps=50)", "steps=400": "steps=200"},
    "examples/hardware.ipynb": {"epochs=25": "epochs=12", "draws=20": "draws=6", "draws=10": "draws=3"},
    "examples/pretrained.ipynb": {"draws=3": "draws=2"},
    "examples/regression.ipynb": {"STEPS = 1000": "STEPS = 500", "draws=100": "draws=50"},
}


def shorter(name: str, blocks: list[str], config: pytest.Config) -> list[str]:
    """The code of a page as this run has it."""
    for long, short in SHORTER.get(name, {}).items():
        assert any(long in block for block in blocks), f"{name} has no {long!r} to be shorter"
        if not config.getoption("--product"):
            blocks = [block.replace(long, short) for block in blocks]
    return blocks


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
