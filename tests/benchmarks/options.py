"""What the command line asks for, and what sections share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.measure import Progress, Row
from tests.benchmarks.processes import ROOT
from tests.benchmarks.workloads import TRAINED, WORKLOADS


@dataclass(frozen=True)
class Options:
    """How much to measure.

    Attributes:
        seconds: for each comparison.
        threads: of torch.
        workloads: the models, for sections that go through them.
        contenders: for the section of training steps.
        peers: the folder of the peers' environments.
        names: which peers; all of them where it is empty.
        progress: told what is being done.
    """

    seconds: float = 10.0
    threads: int = 2
    workloads: Sequence[str] = tuple(WORKLOADS)
    contenders: Sequence[str] = tuple(CONTENDERS)
    peers: Path = ROOT / "build" / "peers"
    names: Sequence[str] = ()
    progress: Progress = field(default=lambda text: None)

    @property
    def trained(self) -> list[str]:
        """The workloads that train."""
        return [name for name in self.workloads if name in TRAINED]

    def about(self, what: str) -> Progress:
        """Progress within a part of the work."""
        return lambda text: self.progress(f"{what}: {text}")


@dataclass(frozen=True)
class Section:
    """A part of the benchmark: what measures it, and what makes a table of its rows."""

    run: Callable[[Options], list[Row]]
    table: Callable[[Sequence[Row]], str]


def markdown(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    first = list(heads)
    lines = [first, ["---"] * len(first), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def grid(rows: Sequence[Row], down: str, cell: Callable[[Row], str], unit: str = "", base: str = "plain") -> str:
    """A row for each value of ``down``, and a column for each contender.

    Cells with a unit stand by themselves; those without are relative to the base, whose milliseconds come first.
    """
    found = {(row[down], row["contender"]): row for row in rows}
    contenders = [name for name in dict.fromkeys(row["contender"] for row in rows) if name != base]
    lines = []
    for place in dict.fromkeys(row[down] for row in rows):
        cells = [cell(found[place, name]) if (place, name) in found else "" for name in contenders]
        first = [] if unit else [_ms(found[place, base])]
        lines.append([f"{place:,}" if isinstance(place, int) else place, *first, *cells])
    heads = [f"{name}, {unit}" for name in contenders] if unit else [f"{base}, ms", *contenders]
    return markdown([down, *heads], lines)


def ratio(row: Row) -> str:
    """The ratio of a row, as tables show it."""
    return f"{row['ratio']:.2f}"


def _ms(row: Row) -> str:
    return f"{row['milliseconds']:.2f}" if row["milliseconds"] < 100 else f"{row['milliseconds']:.0f}"
