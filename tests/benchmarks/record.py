"""What was measured: a JSON file that grows section by section, and the page that shows it."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

import weightnoise as wn
from tests.benchmarks.measure import Row
from tests.benchmarks.sections import SECTIONS

Record: TypeAlias = dict[str, dict[str, Any]]

_BLOCK = re.compile(r"(?<=<!-- benchmark: )([a-z]+) -->\n(.*?)(?=<!-- end -->)", flags=re.DOTALL)


def processor() -> str:
    """The processor's name, as well as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, str | int]:
    """What the figures are measured on, and with."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "engine": wn.engine(),
        "weightnoise": wn.__version__,
    }


def described(on: Mapping[str, str | int]) -> str:
    """A machine in a line."""
    return (
        f"{on['processor']}, {_threads(on)}, torch {on['torch']}, Python {on['python']}, "
        f"weightnoise {on['weightnoise']}, engine {on['engine']}"
    )


def _threads(on: Mapping[str, str | int]) -> str:
    return f"{on['threads']} thread{'s' if on['threads'] != 1 else ''}"


def heading(on: Mapping[str, str | int]) -> str:
    """The line above a table: the instruction set and the threads, which its figures depend on most."""
    level = re.search(r"\((.+?)\)", str(on["engine"]))
    return f"*{level[1] if level else 'torch only'}, {_threads(on)}:*"


def read(path: Path | None) -> Record:
    """What a file holds, or nothing."""
    return json.loads(path.read_text()) if path and path.exists() else {}


def write(record: Record, path: Path) -> None:
    """A line for each row, so that a change is easy to see."""
    parts = []
    for name, found in record.items():
        rows = ",\n".join(f"   {json.dumps(row)}" for row in found["rows"])
        about = json.dumps(found["about"])
        parts.append(f' "{name}": {{\n  "about": {about},\n  "rows": [\n{rows}\n  ]\n }}')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def entry(rows: Iterable[Row], seconds: float, took: float = 0.0) -> dict[str, Any]:
    """A section's rows, what they were measured on, for how long each, and how long all of it took."""
    return {"about": {"machine": machine(), "seconds": seconds, "took": round(took)}, "rows": list(rows)}


def blocks(record: Record) -> dict[str, str]:
    """The text of each section, and of the machines."""
    found = {
        name: f"{heading(record[name]['about']['machine'])}\n\n{SECTIONS[name].table(record[name]['rows'])}"
        for name in SECTIONS
        if record.get(name, {}).get("rows")
    }
    return {"machine": machines(record), **found} if found else {}


def machines(record: Record) -> str:
    """The machine of all sections, or each with its sections where they differ."""
    places: dict[str, list[str]] = {}
    for name, found in record.items():
        places.setdefault(described(found["about"]["machine"]), []).append(name)
    if len(places) == 1:
        return f"{next(iter(places))}."
    return "\n".join(f"- {', '.join(names)}: {place}." for place, names in places.items())


def fill(page: str, texts: Mapping[str, str]) -> str:
    """The page with the texts between its marks; what has no text stays."""

    def put(found: re.Match[str]) -> str:
        name = found[1]
        return f"{name} -->\n\n{texts[name]}\n\n" if name in texts else found[0]

    return _BLOCK.sub(put, page)


def marks(page: str) -> list[str]:
    """The names of the marks of a page."""
    return [found[1] for found in _BLOCK.finditer(page)]


def blank(names: Iterable[str]) -> str:
    """A page of marks alone."""
    return "\n".join(f"## {name}\n\n<!-- benchmark: {name} -->\n<!-- end -->\n" for name in names)
