"""The documentation site: each page is in its navigation, each public name in its reference, each figure drawn."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

import weightnoise as wn
import weightnoise.testing
from tests.docs import DOCS, script

ROOT = Path(__file__).parents[2]
FENCED = re.MULTILINE | re.DOTALL
GUIDES = sorted((DOCS / "guides").glob("*.md"))


def in_navigation() -> list[str]:
    """The pages that mkdocs.yml names, read without a parser of YAML, which the tests do not need otherwise."""
    settings = (ROOT / "mkdocs.yml").read_text()
    found = re.search(r"^nav:\n((?:  .*\n)+)", settings, flags=re.MULTILINE)
    assert found is not None
    entries = found[1].splitlines()
    pages = [re.fullmatch(r" +- (?:[^:]+: )?([\w/-]+\.md)", entry) for entry in entries]
    titles = [entry for entry, page in zip(entries, pages, strict=True) if page is None]
    assert all(re.fullmatch(r"(?:    )?  - [^:]+:", title) for title in titles), titles
    return [page[1] for page in pages if page is not None]


def test_the_navigation_names_every_page_once_and_no_other() -> None:
    written = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
    assert sorted(in_navigation()) == written


def test_a_section_has_seven_entries_at_most() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    open_sections: dict[int, int] = {}  # From the indent to the entries of the section that is open there.
    for line in re.findall(r"^ +- .*$", text[text.index("nav:") : text.index("plugins:")], flags=re.MULTILINE):
        indent = len(line) - len(line.lstrip())
        open_sections = {at: count for at, count in open_sections.items() if at <= indent}
        open_sections[indent] = open_sections.get(indent, 0) + 1
        assert open_sections[indent] <= 7, line


def pages() -> list[Path]:
    """What the site shows as pages, with the files of the repository that pages include."""
    return [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def notebook_texts() -> list[str]:
    """What the cells of the notebooks hold and have printed."""
    cells = [
        cell
        for path in sorted((DOCS / "examples").glob("*.ipynb"))
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == "code"
    ]
    printed = ["".join(output.get("text", "")) for cell in cells for output in cell["outputs"]]
    return ["".join(cell["source"]) for cell in cells] + printed


def test_code_is_no_wider_than_its_column() -> None:
    code = [block for page in pages() for block in re.findall(r"^```.*?^```", page.read_text(), flags=FENCED)]
    lines = [line for text in [*code, *notebook_texts()] for line in text.splitlines()]
    assert len(lines) > 2000
    assert [line for line in lines if len(line) > 115] == []


def test_formulas_in_the_text_are_mathematics() -> None:
    code_and_formulas = r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$|\]\([^)]*\)"
    for page in pages():
        text = re.sub(code_and_formulas, "", page.read_text(), flags=re.DOTALL)
        assert re.findall(r".*(?:\^|w~|\|\|\w+\|\||sqrt\().*", text) == [], page.name


def test_the_front_page_has_a_sentence_a_figure_five_lines_and_whom_it_is_for() -> None:
    text = (DOCS / "index.md").read_text()
    title, sentence, figure = re.split(r"\n\n", text)[:3]
    assert title == "# weightnoise"
    assert sentence.count(".") == 1
    assert figure.startswith("![Accuracy")
    code = re.findall(r"^```python\n(.*?)^```", text, flags=FENCED)[1]
    assert len([line for line in code.splitlines() if line]) == 5
    assert "## Who is this for?" in text
    asked = text[text.index("## What do you want to do?") : text.index("## Install")]
    wanted = ["tutorial", "robustness", "strength", "losses", "activations", "huggingface", "hardware-aware"]
    wanted += ["uncertainty", "exploration", "cluster"]
    assert [page for page in wanted if f"{page}.md" not in asked] == []


@pytest.mark.slow
def test_a_search_finds_what_people_look_for_and_no_source_is_published(tmp_path: Path) -> None:
    for package in ("latex2mathml", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="needs the extra 'docs'")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    index = json.loads((tmp_path / "site" / "search" / "search_index.json").read_text())
    text = " ".join(f"{entry['title']} {entry['text']}" for entry in index["docs"]).lower()
    words = ("hydra", "slurm", "tensorboard", "numerical check", "faq", "cite", "snr", "tensordict")
    assert [word for word in words if word not in text] == []
    assert list((tmp_path / "site").rglob("*.py")) == []
    assert "<math" in (tmp_path / "site" / "laws" / "additive.html").read_text()
    assert 'src="data:image/png;base64,' in (tmp_path / "site" / "examples" / "hardware.html").read_text()
    made = [page.read_text() for page in (tmp_path / "site").rglob("*.html")]
    assert not any("arithmatex" in page or "include:" in page for page in made)
    assert '<code class="option">--vary</code>' in (tmp_path / "site" / "cli.html").read_text()


def test_the_reference_has_every_public_name_once_and_no_other() -> None:
    text = "\n".join(page.read_text() for page in sorted((DOCS / "reference").glob("*.md")))
    documented = Counter(re.findall(r"^::: weightnoise\.([\w.]+)$", text, flags=re.MULTILINE))
    public = [*wn.__all__, "devices", *(f"testing.{name}" for name in weightnoise.testing.__all__)]
    assert documented == Counter(public)


def test_the_files_that_the_settings_name_are_there() -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    scripts = re.findall(r"- (docs/[\w/]+\.py)$", settings, flags=re.MULTILINE)
    (style,) = re.findall(r"- ([\w/]+\.css)$", settings, flags=re.MULTILINE)
    assert len(scripts) == 2
    assert all((ROOT / script).is_file() for script in scripts)
    assert (DOCS / style).is_file()


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("guide_figures", monkeypatch)


def test_guides_show_the_figures_that_are_drawn(figures: ModuleType) -> None:
    shown: dict[str, str] = {}
    for page in GUIDES:
        text = page.read_text()
        found = re.findall(r"^!\[.{20,}\]\(\.\./assets/([\w-]+\.(?:png|svg))\)$", text, flags=re.MULTILINE)
        assert len(found) == text.count("!["), f"{page.name} has an image in another form"
        shown |= dict.fromkeys(found, page.stem)
    assert shown == {figures.file_name(name): name for name in figures.FIGURES}
    assert {path.name for path in (DOCS / "assets").glob("guide-*")} == shown.keys()


def test_a_figure_is_drawn_from_what_its_guide_computes(figures: ModuleType, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        figures.save(figures.FIGURES["uncertainty"](figures.run("uncertainty")), tmp_path / "now.png")
    with Image.open(tmp_path / "now.png") as now, Image.open(DOCS / "assets" / "guide-uncertainty.png") as kept:
        assert now.size == pytest.approx(kept.size, rel=0.02), "Draw it again: python docs/guide_figures.py"
