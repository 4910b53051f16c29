"""The shape of the package: what it exports, which way its files import, what is documented."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import weightnoise as wn
import weightnoise.testing

ROOT = Path(wn.__file__).parent
ORDER = [
    "_errors",
    "_legacy",
    "_private",
    "_gradients",
    "_triton",
    "_engine",
    "_random",
    "_scale",
    "_layers",
    "laws",
    "_switch",
    "_export",
    "_scope",
    "_recompute",
    "_noise_module",
    "_patterns",
    "_tree",
    "_attachment",
    "_activation_noise",
    "_estimators",
    "_lookup",
    "_recurrent",
    "_containers",
    "_in_place_list",
    "_noisy_class",
    "_parametrize",
    "_slots",
    "_select",
    "_plan",
    "_writing",
    "_weights",
    "_decorating",
    "_noise_context",
    "_contexts",
    "_activations",
    "_schedules",
    "_learned",
    "_clipping",
    "_config",
    "_losses",
    "_recording",
    "_progress",
    "_plots",
    "_report",
    "_metric",
    "_vectorized",
    "_robustness",
    "_cli_load",
    "_sweep",
    "testing",
    "integrations",
    "_demo",
    "_cli_demo",
    "_cli_parser",
    "__main__",
]
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages([str(ROOT)], "weightnoise.")
    # The second is a C library, and the others need packages that are not always there.
    if name not in ("weightnoise.__main__", "weightnoise._philox", "weightnoise._triton")
    and ".integrations." not in name
]


def sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def layer(dotted: str) -> str:
    return dotted.split(".")[1]


def test_init_is_imports_and_all() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    kinds = {type(node) for node in tree.body}
    assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}
    public = {name for name, value in vars(wn).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public == set(wn.__all__)


def test_every_file_has_its_place_and_imports_only_from_above() -> None:
    for path in sources():
        if path == ROOT / "__init__.py":
            continue
        place = ORDER.index(path.relative_to(ROOT).parts[0].removesuffix(".py"))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("weightnoise."):
                assert ORDER.index(layer(str(node.module))) <= place, f"{path.name} imports {node.module}"
            elif isinstance(node, ast.ImportFrom) and node.module == "weightnoise":
                for alias in node.names:
                    if alias.name in ORDER:
                        assert ORDER.index(alias.name) <= place, f"{path.name} imports {alias.name}"


def test_two_files_alone_know_torchs_parametrize() -> None:
    knowing = {path.name for path in sources() if "nn.utils import parametrize" in path.read_text()}
    assert knowing == {"_in_place_list.py", "_parametrize.py"}


def test_files_and_functions_stay_small() -> None:
    for path in sources():
        text = path.read_text()
        assert len(text.splitlines()) <= 260, path.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                code = node.body[1:] if ast.get_docstring(node) else node.body
                length = node.end_lineno - code[0].lineno + 1 if code else 0
                assert length <= 45, f"{path.name}: {node.name} has {length} lines"


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    torch.manual_seed(0)
    names = {**vars(wn), **vars(weightnoise.testing), "nn": nn, "torch": torch}
    result = doctest.testmod(importlib.import_module(name), extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("name", [*wn.__all__, *weightnoise.testing.__all__])
def test_everything_public_is_documented(name: str) -> None:
    thing = getattr(wn, name, None) or getattr(weightnoise.testing, name)
    text = inspect.getdoc(thing) or ""
    assert text, name
    if inspect.isfunction(thing):
        assert "Example:" in text, name
        for parameter in inspect.signature(thing).parameters.values():
            assert f"{parameter.name}:" in text, f"{name} does not explain {parameter.name}"


def test_it_ships_its_types() -> None:
    assert (ROOT / "py.typed").exists()


def test_no_gradient_free_escape_hatches() -> None:
    found = {str(path.relative_to(ROOT)): len(re.findall(r"\.data\b", path.read_text())) for path in sources()}
    # Where a result of autograd's is given other memory, of which no tensor that anybody has is a part.
    assert {name: count for name, count in found.items() if count} == {"_gradients.py": 1}
