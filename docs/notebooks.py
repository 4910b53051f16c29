"""Run the notebooks of docs/examples and keep what they print and draw: ``python docs/notebooks.py [name ...]``.

The cells run one after the other in this process, in an empty folder: no Jupyter is needed. What a cell prints and
the figures that it leaves open become its outputs, and the pages of the site show them.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
from matplotlib import pyplot
from PIL import Image

Cell: TypeAlias = dict[str, Any]

FOLDER = Path(__file__).parent / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name: str) -> dict[str, Any]:
    """A notebook, by its name."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return found


def _figures() -> list[Cell]:
    outputs = []
    for number in pyplot.get_fignums():
        drawn, kept = io.BytesIO(), io.BytesIO()
        pyplot.figure(number).savefig(drawn, format="png", dpi=110)
        Image.open(drawn).convert("RGB").quantize(128).save(kept, format="png", optimize=True)
        data = {"image/png": base64.b64encode(kept.getvalue()).decode(), "text/plain": ["<Figure>"]}
        outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
    pyplot.close("all")
    return outputs


def _run_cell(cell: Cell, page: types.ModuleType, title: str) -> list[Cell]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("".join(cell["source"]), title, "exec"), vars(page))
    lines = printed.getvalue().splitlines(keepends=True)
    stream = [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
    return stream + _figures()


def run(name: str) -> dict[str, Any]:
    """A notebook with the outputs that its cells have now."""
    notebook = read(name)
    page, here = types.ModuleType("page"), Path.cwd()
    matplotlib.use("agg")
    sys.modules["page"] = page  # Dataclasses and pickle look up the module they are defined in.
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
            for number, cell in enumerate(code, 1):
                cell["outputs"] = _run_cell(cell, page, f"{name}, cell {number}")
                cell["execution_count"] = number
        finally:
            os.chdir(here)
            del sys.modules["page"]
            pyplot.close("all")
    return notebook


def main() -> None:
    """Run the notebooks that the command line names, or all, and write them back."""
    parser = argparse.ArgumentParser(description="Run the notebooks of docs/examples.")
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(NAMES))
    for name in parser.parse_args().names or NAMES:
        text = json.dumps(run(name), indent=1, ensure_ascii=False) + "\n"
        (FOLDER / f"{name}.ipynb").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
