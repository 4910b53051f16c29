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
# The rooms, in the order of imports. The verbs are the files at the top level that are none of them.
ROOMS = (
    ("_errors", "_checks"),
    ("_torch",),
    ("_random",),
    ("laws",),
    ("_noise",),
    ("_attach",),
    ("_select",),
    ("verbs",),
    ("_robustness", "testing"),
    ("integrations", "_cli", "__main__"),
)
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages([str(ROOT)], "weightnoise.")
    # The second is a C library, and the others need packages that are not always there.
    if name not in ("weightnoise.__main__", "weightnoise._random._philox", "weightnoise._random.triton")
    and ".integrations." not in name
]


def sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def floor(room: str) -> int:
    return FLOORS.get(room, FLOORS["verbs"])


def imported(path: Path) -> set[str]:
    """The files and folders of the package that a file imports from."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("weightnoise."):
            rooms.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "weightnoise":
            # What the package itself exports is above all but the ways in.
            there = [alias.name for alias in node.names]
            rooms |= {
                name if (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file() else "_robustness"
                for name in there
            }
    return rooms


def test_init_is_imports_and_all() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    kinds = {type(node) for node in tree.body}
    assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}
    public = {name for name, value in vars(wn).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public == set(wn.__all__)


def test_imports_run_one_way() -> None:
    for path in sources():
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for other in imported(path) if room != "__init__" else ():
            assert floor(other) <= floor(room), f"{path.name} imports {other}"


def test_every_room_says_what_it_is() -> None:
    for folder in ROOT.iterdir():
        if (folder / "__init__.py").exists() and folder.name not in ("integrations", "laws", "testing"):
            text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
            assert all(word in text for word in ("Begin with", "May touch", "Promises")), folder.name


def test_the_guide_through_the_house_names_every_file() -> None:
    table = (ROOT.parent / "docs" / "design.md").read_text().split("## Files")[1]
    named = {name for name in re.findall(r"`([\w/]+(?:\.py|/))`", table) if name != "csrc/"}
    rooms = ("laws", "testing", "integrations")  # A line each.
    files = {path.relative_to(ROOT).as_posix() for path in sources() if path.name != "__init__.py"}
    assert named == {name for name in files if name.split("/")[0] not in rooms} | {f"{room}/" for room in rooms}


def test_two_files_alone_know_torchs_parametrize() -> None:
    knowing = {path.name for path in sources() if "nn.utils import parametrize" in path.read_text()}
    assert knowing == {"stack.py", "attach.py"}


MAKERS = {"arange", "empty", "full", "linspace", "ones", "rand", "randint", "randn", "randperm", "tensor", "zeros"}


def test_every_tensor_is_made_with_its_own_dtype_and_device() -> None:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{name}" for name in MAKERS}:
                named = {keyword.arg for keyword in node.keywords}
                assert named >= {"dtype", "device"}, f"{path.name}:{node.lineno}: {ast.unparse(node)}"


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
    assert [path.name for path in sources() if re.search(r"\.data\b", path.read_text())] == []
