"""An evaluation from its plan to its report."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor, nn

import weightnoise
from weightnoise._random.philox import engine
from weightnoise._robustness.cells import Cell, Found, find_cells
from weightnoise._robustness.executors import run_on
from weightnoise._robustness.metric import model_fingerprint
from weightnoise._robustness.plan import Plan, is_function, law_name, metric_name
from weightnoise._robustness.report import RobustnessReport
from weightnoise._robustness.running import Store, asked, evaluation, rows_of

_NOTE = "What was measured before is the attribute `report` of this exception, a RobustnessReport."


def run_plan(
    model: nn.Module,
    plan: Plan,
    *,
    threshold: float | None,
    higher_is_better: bool,
    progress: bool = False,
    store: Store | None = None,
    executor: Any = None,
) -> RobustnessReport:
    """The report of a plan."""
    kept, cells = Store() if store is None else store, list[Cell]()
    weights = model_fingerprint(model)

    def report(found: Mapping[Cell, Mapping[int, Found]]) -> RobustnessReport:
        return report_of(weights, plan, found, kept, threshold, higher_is_better)

    def partial() -> RobustnessReport:
        return report({cell: rows_of(kept, plan, cell) for cell in cells})

    def missing() -> int:
        return sum(kept.get(cell.key, number) is None for cell in cells for number in asked(plan, cell))

    def so_far() -> dict[str, Any]:
        count = sum(len(asked(plan, cell)) for cell in cells)
        return {**partial().to_dict(), "done": [count - missing(), count]}

    with reported(partial), evaluation(model, plan, progress, kept, run_on(executor, model)) as run:
        cells += find_cells(model, plan, run.deterministic)
        kept.so_far = so_far
        run.tick.expect(missing())
        found = run(plan, cells)
    return report(found)


@contextmanager
def reported(so_far: Callable[[], RobustnessReport]) -> Iterator[None]:
    """Give an exception what was measured before it, as its attribute ``report``."""
    try:
        yield
    except BaseException as error:
        with suppress(Exception):  # The error matters more than what can be told beside it.
            report = so_far()
            if report.curves:
                vars(error)["report"] = report
                if _NOTE not in getattr(error, "__notes__", ()):
                    getattr(error, "add_note", len)(_NOTE)  # From Python 3.11 on.
        raise


def report_of(
    weights: str,
    plan: Plan,
    found: Mapping[Cell, Mapping[int, Found]],
    store: Store,
    threshold: float | None,
    higher_is_better: bool,
) -> RobustnessReport:
    """What was found in the cells of a plan, as a report; ``weights`` is the fingerprint of the model."""
    curves, masks = _curves(plan, found)
    clean = store.get("clean", 0) or {}
    return RobustnessReport(
        levels=tuple(level for level, _ in plan.levels),
        curves=curves,
        seed=plan.seed,
        threshold=threshold,
        higher_is_better=higher_is_better,
        made_by=provenance(weights, plan, list(found)),
        antithetic=plan.antithetic,
        measured=masks,
        chips=tuple((plan.seed, number) for number in plan.numbers),
        clean={
            label: value
            for cell in found
            for entry, value in clean.items()
            if (label := _label(cell, entry)) in curves
        },
    )


def _label(cell: Cell, entry: str) -> str:
    return " / ".join(filter(None, (cell.part or cell.curve, entry)))


def _curves(plan: Plan, found: Mapping[Cell, Mapping[int, Found]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values, and what was measured, for each law or part and entry of the metric."""
    columns = {number: column for column, number in enumerate(plan.numbers)}
    values: dict[str, list[list[float]]] = {}
    there: dict[str, list[list[bool]]] = {}
    for cell, rows in found.items():
        for number, one in rows.items():
            for entry, value in one.items():
                label = _label(cell, entry)
                if label not in values:
                    values[label] = [[math.nan] * len(columns) for _ in plan.levels]
                    there[label] = [[False] * len(columns) for _ in plan.levels]
                values[label][cell.place][columns[number]] = value
                there[label][cell.place][columns[number]] = True
    curves = {name: torch.tensor(rows, dtype=torch.float64, device="cpu") for name, rows in values.items()}
    return curves, {name: torch.tensor(rows, dtype=torch.bool, device="cpu") for name, rows in there.items()}


def provenance(weights: str, plan: Plan, cells: list[Cell]) -> dict[str, str]:
    """What the numbers depend on, and when and with what they were made."""
    made_by = {
        "weightnoise": weightnoise.__version__,
        "torch": torch.__version__,
        "engine": engine().partition(" ")[0],
        "metric": metric_name(plan.metric),
        "law": "; ".join(_laws(plan, cells)),
        "model": weights,
    }
    if plan.by_parameter:
        made_by["noise on"] = "one parameter at a time"
    if plan.reads == "fresh":
        made_by["reads"] = plan.reads
    if plan.recalibrate is not None:
        made_by["batch statistics"] = "gathered for each draw"
    if plan.until is not None:
        target = plan.until.target
        made_by["until_sem"] = f"{100 * target:g} %" if plan.until.relative else f"{target:g}"
    made_by["python"] = platform.python_version()
    made_by["threads"] = str(torch.get_num_threads())
    made_by["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return made_by


def _laws(plan: Plan, cells: list[Cell]) -> Iterator[str]:
    """Each law with its name; of a function, the specs that it makes."""
    for curve, law in plan.laws.items():
        name = law_name(law)
        if is_function(law):
            specs = {plan.levels[cell.place][0]: law_name(cell.spec) for cell in cells if cell.curve == curve}
            name += f" ({', '.join(f'{level}: {spec}' for level, spec in specs.items())})"
        yield name if curve in (name, law_name(law), "noise") else f"{curve}: {name}"
