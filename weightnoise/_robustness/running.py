"""Draws that are measured, cell by cell, in this process."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from weightnoise._contexts import no_noise
from weightnoise._robustness.cells import Cell, Found, added, at_level, by_spec, measure_once, measured
from weightnoise._robustness.metric import check_deterministic
from weightnoise._robustness.plan import Plan, check_noisy, check_shared
from weightnoise._robustness.progress import Ticker, progress_bar
from weightnoise._robustness.recalibration import check_recalibration
from weightnoise._robustness.sample import Sample
from weightnoise._torch.modules import state_kept

Rows = dict[int, Found]


class Store:
    """What has been measured, by cell and draw.

    Attributes:
        so_far: what has been measured, as the content of a report, with ``done``: how many draws, and of how many
            (0 where that is open).
    """

    def __init__(self) -> None:
        self.measured: dict[str, Found] = {}
        self.so_far: Callable[[], Mapping[str, Any]] = dict

    def get(self, key: str, number: int) -> Found | None:
        """What was found in a draw of a cell."""
        return self.measured.get(f"{key} #{number}")

    def put(self, key: str, number: int, found: Found) -> None:
        """Keep what was found."""
        self.measured[f"{key} #{number}"] = dict(found)


@dataclass(frozen=True)
class Run:
    """An evaluation that is going on: it measures cells, and knows what was measured before.

    Attributes:
        deterministic: whether the metric is the same in two runs without noise.
    """

    model: nn.Module
    store: Store
    tick: Ticker
    deterministic: bool

    def __call__(self, plan: Plan, cells: Sequence[Cell]) -> dict[Cell, Rows]:
        """What is found in each draw of each cell."""
        found: dict[Cell, Rows] = {}
        for alike in by_spec(cells):
            with added(self.model, alike[0].spec) as on:
                for cell in alike:
                    with at_level(on, cell):
                        found[cell] = self._of(plan, cell)
                    log_cell(plan, cell, found[cell])
        return found

    def close(self) -> None:
        """Let go of what the evaluation has opened."""

    def _of(self, plan: Plan, cell: Cell) -> Rows:
        """What is found in each draw of a cell, until it is known precisely enough."""
        known = {number: self.store.get(cell.key, number) for number in asked(plan, cell)}
        new = measured(self.model, plan, cell, [number for number, found in known.items() if found is None])
        rows: Rows = {}
        for number, found in known.items():
            if found is None:
                found = next(new)
                self.store.put(cell.key, number, found)
                self.tick(f"{place_of(plan, cell)}, draw {len(rows) + 1} of {len(known)}")
            rows[number] = found
            if is_enough(plan, rows):
                self.tick.expect(-sum(one is None for place, one in known.items() if place > number))
                break
        return whole(plan, cell, rows)


def place_of(plan: Plan, cell: Cell) -> str:
    """What a cell is called in a line of progress; the curves of a search have their level in their name."""
    level = f" at {plan.levels[cell.place][0]}"
    return f"{cell.curve.removesuffix(level)}{level}"


def asked(plan: Plan, cell: Cell) -> Sequence[int]:
    """The draws to measure: where they are all the same, one."""
    return plan.numbers[:1] if cell.silent else plan.numbers


def rows_of(store: Store, plan: Plan, cell: Cell) -> Rows:
    """What is known of a cell."""
    rows = {number: found for number in asked(plan, cell) if (found := store.get(cell.key, number)) is not None}
    return whole(plan, cell, rows) if rows else rows


def whole(plan: Plan, cell: Cell, rows: Rows) -> Rows:
    """All draws of a cell: where they are all the same, one was measured."""
    return dict.fromkeys(plan.numbers, rows[plan.numbers[0]]) if cell.silent else rows


def log_cell(plan: Plan, cell: Cell, rows: Mapping[int, Found]) -> None:
    """Say what a level has come to."""
    if plan.log is None:
        return
    for entry in dict.fromkeys(name for found in rows.values() for name in found):
        sample = sample_of(plan, rows, entry)
        # Letters that MLflow takes in a name.
        name = re.sub(r"[^\w./ :-]+", "_", " ".join(filter(None, (cell.part or cell.curve, entry))))
        plan.log(f"robustness/{name}/mean", sample.mean, cell.place)
        if sample.sem == sample.sem:  # One draw has none.
            plan.log(f"robustness/{name}/standard error", sample.sem, cell.place)


Make = Callable[[nn.Module, Store, Ticker, bool], Run]


@contextmanager
def evaluation(model: nn.Module, plan: Plan, progress: bool, store: Store, make: Make = Run) -> Iterator[Run]:
    """Evaluate a model inside, by a run that ``make`` makes: it comes back as it was.

    An exception has what was measured before it in its attribute ``report``, by `reported`.
    """
    check_shared(model)
    check_recalibration(model, plan.recalibrate)
    if None in plan.laws.values():
        check_noisy(model)
    with state_kept(model), progress_bar(progress) as tick:
        with no_noise(model):
            clean = [_clean(model, plan, store, number) for number in (0, 1)]
        run = make(model, store, tick, check_deterministic(clean))
        try:
            yield run
        finally:
            run.close()


def _clean(model: nn.Module, plan: Plan, store: Store, number: int) -> Found:
    found = store.get("clean", number)
    if found is None:
        found = measure_once(model, plan, f"metric without noise {number}")
        store.put("clean", number, found)
    return found


def is_enough(plan: Plan, rows: Mapping[int, Found]) -> bool:
    """Whether a level is known as precisely as was asked."""
    stop = plan.until
    if stop is None or (plan.antithetic and len(rows) % 2):
        return False
    entries = dict.fromkeys(name for found in rows.values() for name in found)
    return all(sample_of(plan, rows, name).is_precise(stop.target, stop.relative) for name in entries)


def sample_of(plan: Plan, rows: Mapping[int, Found], entry: str) -> Sample:
    """The values of one entry of the metric so far."""
    there = {number: found[entry] for number, found in rows.items() if entry in found}
    values = torch.tensor(list(there.values()), dtype=torch.float64, device="cpu")
    numbers = torch.tensor(list(there), dtype=torch.int64, device="cpu")
    return Sample(values, numbers // 2 if plan.antithetic else numbers)
