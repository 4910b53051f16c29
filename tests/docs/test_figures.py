"""docs/figures.py makes every figure that the pages about the laws show, and no other."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

import weightnoise as wn
from tests.docs import DOCS, script

PAGES = sorted((DOCS / "laws").glob("*.md"))


def shown(page: Path) -> list[str]:
    """The names of the figures of a page, each of which needs a text for those who do not see it."""
    text = page.read_text()
    found = re.findall(r"^!\[(.{20,})\]\(\.\./images/([\w-]+)\.png\)$", text, flags=re.MULTILINE)
    assert len(found) == text.count("!["), f"{page.name} has an image in another form"
    return [name for _, name in found]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("figures", monkeypatch)


@pytest.mark.slow
def test_all_figures_are_drawn(figures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DRAWS", 20)
    monkeypatch.setattr(sys, "argv", ["figures.py", str(tmp_path / "images")])
    state = torch.get_rng_state()
    figures.main()
    assert torch.equal(torch.get_rng_state(), state)
    drawn = {path.name: path for path in (tmp_path / "images").iterdir()}
    assert drawn.keys() == {f"{name}.png" for name in figures.FIGURES}
    for name, path in drawn.items():
        with Image.open(path) as now, Image.open(DOCS / "images" / name) as kept:
            assert now.format == kept.format == "PNG"
            # The same rows and columns, whatever the numbers; another matplotlib may move a line by some points.
            assert now.size == pytest.approx(kept.size, rel=0.02), f"Draw {name} again: python docs/figures.py"


def test_the_folder_holds_the_figures_and_nothing_else(figures: ModuleType) -> None:
    found = {path.name for path in (DOCS / "images").iterdir() if not path.name.startswith("benchmark-")}
    assert found == {f"{name}.png" for name in figures.FIGURES}


def test_pages_show_the_figures_that_are_drawn(figures: ModuleType) -> None:
    assert sorted(name for page in PAGES for name in shown(page)) == sorted(figures.FIGURES)


def test_each_family_has_its_page_and_its_figure_there(figures: ModuleType) -> None:
    pages = {page.stem: page for page in PAGES}
    assert pages.keys() - {"index"} == figures.FAMILIES.keys()
    index = pages["index"].read_text()
    for family in figures.FAMILIES:
        assert shown(pages[family])[0] == family
        assert f"]({family}.md)" in index


def test_titles_are_the_laws_that_are_drawn(figures: ModuleType) -> None:
    names = {**vars(wn), **vars(figures)}
    for rows in figures.FAMILIES.values():
        for row in rows:
            law = eval(row.title, names)  # As one would write it.
            assert (wn.Chain(tuple(law)) if isinstance(law, list) else law) == row.law


def test_each_weight_law_is_in_the_index() -> None:
    index = (DOCS / "laws" / "index.md").read_text()
    # Those of activations have a page of their own; a list becomes a Chain; and what a law is, is for authors.
    elsewhere = {"ActivationLaw", "Chain", "CurrentNoise", "Law", "NEFTune", "Noise", "SaltAndPepper"}
    laws = {name for name in wn.laws.__all__ if isinstance(getattr(wn.laws, name), type)} - elsewhere
    assert [name for name in sorted(laws) if f"`{name}`" not in index] == []
