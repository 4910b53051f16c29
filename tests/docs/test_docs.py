"""Every code block in the README and the docs runs; blocks of one page share their names."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from tests.docs import shorter

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TRAINING = {  # Guides, for more than a moment.
    "analog-language-model.md",
    "batch-normalisation.md",
    "distillation.md",
    "exploration.md",
    "hardware-aware.md",
    "huggingface.md",
    "posteriors.md",
    "sparsity.md",
    "strength.md",
    "variational.md",
    "vectorised-exploration.md",
    "zeroth-order.md",
}

NEEDS = {
    # aihwkit requires torchvision, and with it a torch for GPUs: it is in no extra (ecosystem/test_aihwkit.py).
    "simulators": ["aihwkit"],
    "huggingface": ["transformers", "accelerate"],
    "vectorised-exploration": ["gymnasium", "torchrl"],
    "cluster": ["tensorboard", "omegaconf", "hydra"],
    "posteriors": ["ivon"],
}  # By page.


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")  # torch 2.5: plain state dicts too.
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page, id=page.name, marks=[pytest.mark.slow] * (page.parent.name == "guides" and page.name in TRAINING)
        )
        for page in PAGES
    ],
)
def test_code_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    for package in NEEDS.get(page.stem, []):
        pytest.importorskip(package, reason="is in the extra 'ecosystem' or in none")
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # Dataclasses look up the module they are defined in.
    for block in shorter(f"{page.parent.name}/{page.name}", blocks(page), pytestconfig):
        exec(compile(block, str(page), "exec"), vars(module))


def test_the_readme_has_code() -> None:
    assert len(blocks(ROOT / "README.md")) >= 2
