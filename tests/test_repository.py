"""What surrounds the package: links between files, versions that agree, and what an import brings along."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import weightnoise as wn

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SETTINGS = (ROOT / "pyproject.toml").read_text(encoding="utf-8")  # tomllib is there from Python 3.11 on.
ADDRESS = "https://github.com/weightnoise/weightnoise"

# What takes longer to import than the package, where torch has not imported it by itself.
HEAVY = {"torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.onnx", "numpy", "sympy"}


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def supported() -> list[str]:
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', SETTINGS)


def versions() -> list[dict[str, str]]:
    """The rows of the matrix that tests run on, as GitHub expands it."""
    matrix = loaded(GITHUB / "workflows" / "tests.yml")["jobs"]["versions"]["strategy"]["matrix"]
    base = [{"os": system, "python": python} for system in matrix["os"] for python in matrix["python"]]
    keys, rows = set(base[0]), [dict(row) for row in base]
    added = []
    for extra in matrix["include"]:
        fits = [row for row in rows if all(row[key] == extra[key] for key in keys & set(extra))]
        for row in fits:
            row.update(extra)
        added += [] if fits else [extra]
    return rows + added


# Links.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_linked_file_exists(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(<?([^)\s>]+)", text)
    missing = [
        link
        for link in links
        if not re.match(r"[a-z]+:|#", link) and not (page.parent / link.partition("#")[0]).exists()
    ]
    assert missing == []


def test_there_is_one_address() -> None:
    for name in ("CITATION.cff", "CONTRIBUTING.md", "pyproject.toml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        found = re.findall(r"https://github\.com/[\w-]+/[\w-]+", text)
        assert found
        assert set(found) == {ADDRESS}


# Versions.


def test_the_citation_is_of_this_version() -> None:
    citation = loaded(ROOT / "CITATION.cff")
    assert citation["version"] == wn.__version__
    assert citation["authors"] == [{"name": "The weightnoise developers"}]
    assert f"## {wn.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_oldest_python_is_the_same_everywhere() -> None:
    oldest = supported()[0]
    assert f'requires-python = ">={oldest}"' in SETTINGS
    assert f'target-version = "py{oldest.replace(".", "")}"' in SETTINGS
    assert f'python_version = "{oldest}"' in SETTINGS
    for page in ("README.md", "docs/index.md", "CONTRIBUTING.md"):
        assert f"Python {oldest}" in (ROOT / page).read_text(encoding="utf-8")


def test_the_workflows_run_the_versions_that_are_promised() -> None:
    rows = versions()
    assert all(set(row) == {"os", "python", "torch"} for row in rows)
    assert sorted({row["python"] for row in rows}, key=supported().index) == supported()
    pinned = re.search(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    least = re.search(r'dependencies = \["torch>=(.*)"\]', SETTINGS)
    assert pinned is not None
    assert least is not None
    ends = {(supported()[0], f"{least[1]}.1"), (supported()[-1], pinned[1])}
    for system in ("ubuntu", "macos", "windows"):
        assert ends <= {(row["python"], row["torch"]) for row in rows if row["os"].startswith(system)}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_few_rights_and_an_end(path: Path) -> None:
    workflow = loaded(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 120
        assert name == "publish" or "permissions" not in job
        for step in job["steps"]:
            action, _, version = step.get("uses", "x@v1").partition("@")
            assert re.fullmatch(r"v\d+|release/v\d+", version), f"{action}@{version}"


def test_the_hooks_are_the_tools_of_the_environment() -> None:
    hooks = [hook for repo in loaded(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    tools = [hook["entry"].split()[0] for hook in hooks]
    assert set(tools) == {"ruff", "mypy"}
    assert {hook["language"] for hook in hooks} == {"system"}
    extra = re.search(r"^dev = \[(.*)\]$", SETTINGS, flags=re.MULTILINE)
    assert extra is not None
    assert all(f'"{tool}>=' in extra[1] for tool in (*tools, "pre-commit"))


@pytest.mark.parametrize("path", sorted((GITHUB / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.name)
def test_issue_forms_ask_for_something(path: Path) -> None:
    form = loaded(path)
    assert {"name", "description", "body"} <= set(form)
    names = [field["id"] for field in form["body"]]
    assert len(names) == len(set(names)) > 0


# The import.


def test_the_import_brings_no_heavy_package_along() -> None:
    code = "import sys, torch; before = set(sys.modules); import weightnoise; print(*(set(sys.modules) - before))"
    command = [sys.executable, "-c", code]
    brought = set(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split())
    assert "weightnoise" in brought
    assert brought & HEAVY == set()
    packages = {name.partition(".")[0] for name in brought}
    assert packages - sys.stdlib_module_names <= {"torch", "weightnoise"}
