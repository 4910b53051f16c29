"""Docstrings as the reference pages show them.

The docstrings are written to be read with ``help()``. On a page, `Name` becomes a link, a formula after ``::``
loses one colon, a table of text becomes a table, and an example is a section of code.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parent.parent.parent
TABLE = re.compile(r"^=+(?: +=+)+\n(?:.+\n)+", flags=re.MULTILINE)
SOURCE = re.compile(r"^Source:\n((?:    .+\n?)+)", flags=re.MULTILINE)


def exported(package: str) -> dict[str, str]:
    """From the names that a package exports to their full names, without importing it."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
    lists = [node.value for node in tree.body if isinstance(node, ast.Assign) and "__all__" in ast.dump(node)]
    return {name: f"{package}.{name}" for name in ast.literal_eval(lists[0])}


TARGETS = exported("weightnoise") | exported("weightnoise.testing")


def as_page(text: str) -> str:
    """The text of a docstring in the Markdown of the site."""
    text = TABLE.sub(_table, text)
    text = SOURCE.sub(lambda found: f"**Source:** {' '.join(found[1].split())}\n", text)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return re.sub(r"(?<!`)`(\w+)`(?!`)", _link, text)


def _table(found: re.Match[str]) -> str:
    lines = [line for line in found[0].splitlines() if not line.startswith("=")]
    rows = ["| " + " | ".join(re.split(r" {2,}", line.strip())) + " |" for line in lines]
    return "\n".join([rows[0], "|---" * (rows[0].count(" | ") + 1) + "|", *rows[1:]]) + "\n"


def _link(found: re.Match[str]) -> str:
    target = TARGETS.get(found[1])
    return f"[`{found[1]}`][{target}]" if target else found[0]


class Docstrings(griffe.Extension):
    """Rewrites every docstring once the package is loaded."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = as_page(obj.docstring.value)
