"""The notebooks run from their first cell to their last, and hold the outputs that they have now."""

from __future__ import annotations

import base64
import importlib.util
import io
import re
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from tests.docs import DOCS, script, shorter

NEEDS = {
    "cartpole": ["gymnasium", "torchrl"],
    "pretrained": ["all_minilm_l6_v2", "chatterbot_corpus", "safetensors", "tokenizers", "transformers", "yaml"],
    "transformers": ["accelerate", "onnxruntime", "onnxscript", "peft", "transformers"],
}  # By notebook; others need what the tests do.
NAMES = sorted(path.stem for path in (DOCS / "examples").glob("*.ipynb"))


@pytest.fixture
def notebooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("notebooks", monkeypatch)


def kinds(notebook: dict[str, Any]) -> list[list[str]]:
    """Of the outputs of each cell, the kinds."""
    return [[output["output_type"] for output in cell.get("outputs", [])] for cell in notebook["cells"]]


def figures(notebook: dict[str, Any]) -> list[Image.Image]:
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", []) if "data" in output]
    return [Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))) for output in outputs]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Those of the packages that the examples are about.
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_prints_and_draws_what_it_holds(
    name: str, notebooks: ModuleType, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    for package in NEEDS.get(name, []):
        if importlib.util.find_spec(package) is None:  # One prints when it is imported.
            pytest.skip(f"needs {package}, of the extra 'ecosystem' or 'pretrained'")
    kept, now = notebooks.read(name), notebooks.read(name)
    cells = [cell for cell in now["cells"] if cell["cell_type"] == "code"]
    codes = shorter(f"examples/{name}.ipynb", ["".join(cell["source"]) for cell in cells], pytestconfig)
    for cell, code in zip(cells, codes, strict=True):
        cell["source"] = [code]
    monkeypatch.setattr(notebooks, "read", lambda name: now)
    with torch.random.fork_rng(devices=[]):
        notebooks.run(name)
    assert kinds(now) == kinds(kept), "Run it again: python docs/notebooks.py"
    for drawn, stored in zip(figures(now), figures(kept), strict=True):
        assert drawn.size == pytest.approx(stored.size, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_page_with_a_title_and_figures_that_have_a_text(name: str, notebooks: ModuleType) -> None:
    notebook = notebooks.read(name)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert f"include: docs/examples/{name}.ipynb" in (DOCS / "examples" / f"{name}.md").read_text()
    first, *rest = notebook["cells"]
    assert first["cell_type"] == "markdown"
    assert first["source"][0].startswith("# ")
    assert not any(
        line.startswith("# ") for cell in rest if cell["cell_type"] == "markdown" for line in cell["source"]
    )
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert any("image/png" in output.get("data", {}) for cell in rest for output in cell.get("outputs", []))
    for cell in rest:
        if any("data" in output for output in cell.get("outputs", [])):
            assert len(cell["metadata"]["alt"]) >= 20


@pytest.mark.parametrize("name", NAMES)
def test_its_links_lead_somewhere(name: str, notebooks: ModuleType) -> None:
    cells = notebooks.read(name)["cells"]
    text = "".join(line for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"])
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s:]+)\)", text)]
    assert links
    assert [link for link in links if not (DOCS / "examples" / link).is_file()] == []
