"""Print the tables of the guide on an analog language model: ``python docs/analog_language_model.py --seeds 12``.

The code of the page defines the trainings; here they run with several seeds, the same ones for each student, and
on the same chips. So the values of a student form a table, trainings by chips, and so do the differences between
two students. Of such a table two standard errors are printed: that over trainings, of the means over chips, and
that over chips, of the means over trainings.
"""

from __future__ import annotations

import argparse
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

Training: TypeAlias = dict[str, dict[str, Tensor]]  # By student and column: a value for each chip.

PAGE = Path(__file__).parent / "guides" / "analog-language-model.md"

PARTS = {
    "noise": ("plain", "noise"),
    "noise, where weights are clipped": ("clipping", "noise and clipping"),
    "clipping": ("plain", "clipping"),
    "clipping, where there is noise": ("noise", "noise and clipping"),
    "converters in training": ("noise and clipping", "all"),
    "all of it": ("plain", "all"),
}
"""What a part buys: the students without it and with it."""


def definitions() -> dict[str, Any]:
    """The names that the page defines; its last block, which trains, does not run."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    page = types.ModuleType("page")
    sys.modules["page"] = page  # Dataclasses and pickle look up the module they are defined in.
    exec(compile("\n".join(blocks[:-1]), str(PAGE), "exec"), vars(page))
    return vars(page)


def errors(values: Tensor) -> tuple[float, float, float]:
    """The mean of trainings by chips, and its standard errors over trainings and over chips; nan for one alone."""

    def over(means: Tensor) -> float:
        return float(means.std() / len(means) ** 0.5) if len(means) > 1 else float("nan")

    return float(values.mean()), over(values.mean(dim=1)), over(values.mean(dim=0))


def print_table(title: str, columns: list[str], rows: dict[str, Callable[[str], str]]) -> None:
    """A table in Markdown; a row is a function of the column."""
    print(f"\n| {title} | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name, cell in rows.items():
        print(f"| {name} | {' | '.join(map(cell, columns))} |", flush=True)


def print_tables(trainings: list[Training]) -> None:
    """The nats of each student, and what each part of the recipe buys, in thousandths."""

    def table(student: str, column: str) -> Tensor:
        return torch.stack([one[student][column] for one in trainings]).double()

    def cell(student: str, column: str) -> str:
        mean, *parts = errors(table(student, column))
        return f"{mean:.3f} ± {sum(part**2 for part in parts if part == part) ** 0.5:.3f}"

    def gain(before: str, after: str, column: str) -> str:
        found = errors(table(before, column) - table(after, column))
        return " ± ".join(f"{1000 * one:.1f}" for one in found if one == one)

    columns = list(trainings[0]["plain"])
    print_table(
        "nats a token", columns, {name: lambda column, name=name: cell(name, column) for name in trainings[0]}
    )
    print_table(
        "gain, nats / 1000",
        columns,
        {name: lambda column, pair=pair: gain(*pair, column) for name, pair in PARTS.items()},
    )


def main(arguments: list[str] | None = None) -> None:
    """Train with several seeds, and print the tables."""
    parser = argparse.ArgumentParser(description="The tables of the guide on an analog language model.")
    parser.add_argument("--seeds", type=int, default=12, help="how many trainings of each student (default: 12)")
    parser.add_argument("--chips", type=int, default=8, help="how many chips of each device (default: 8)")
    parser.add_argument(
        "--steps", type=int, nargs=2, metavar=("TEACHER", "STUDENT"), help="steps of the trainings"
    )
    chosen = parser.parse_args(arguments)
    page = definitions()
    page["CHIPS"] = chosen.chips
    if chosen.steps:
        page["TEACHER_STEPS"], page["STUDENT_STEPS"] = chosen.steps
    trainings = []
    for seed in range(chosen.seeds):
        trainings.append(page["one_training"](seed))
        print(f"training {seed + 1} of {chosen.seeds}", file=sys.stderr, flush=True)
    print_tables(trainings)


if __name__ == "__main__":
    main()
