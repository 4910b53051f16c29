"""An evaluation from its plan to its report."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor, nn

import weightnoise
from weightnoise._random.philox import engine
from weightnoise._robustness.cells import Cell, Found, find_cells
from weightnoise._robustness.executors import run_on
from weightnoise._robustness.metric import fingerprint
from weightnoise._robustness.plan import Plan, is_function, law_name, metric_name
from weightnoise._robustness.report import RobustnessReport
from weightnoise._robustness.running import Store, evaluation


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
    with evaluation(model, plan, progress, store, run_on(executor, model)) as run:
        cells = find_cells(model, plan, run.deterministic)
        found = run(plan, cells)
    levels = tuple(level for level, _ in plan.levels)
    curves, masks = _curves(plan, found)
    chips = tuple((plan.seed, number) for number in plan.numbers)
    made_by = provenance(model, plan, cells)
    return RobustnessReport(
        levels, curves, plan.seed, threshold, higher_is_better, made_by, plan.antithetic, masks, chips
    )


def _curves(plan: Plan, found: Mapping[Cell, Mapping[int, Found]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values, and what was measured, for each law or part and entry of the metric."""
    shape = (len(plan.levels), len(plan.numbers))
    curves: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for cell, rows in found.items():
        for number, one in rows.items():
            for entry, value in one.items():
                label = " / ".join(filter(None, (cell.part or cell.curve, entry)))
                if label not in curves:
                    curves[label] = torch.full(shape, torch.nan, dtype=torch.float64, device="cpu")
                    masks[label] = torch.zeros(shape, dtype=torch.bool, device="cpu")
                curves[label][cell.place, number - plan.numbers[0]] = value
                masks[label][cell.place, number - plan.numbers[0]] = True
    return curves, masks


def provenance(model: nn.Module, plan: Plan, cells: list[Cell]) -> dict[str, str]:
    """What the numbers depend on, and when and with what they were made."""
    made_by = {
        "weightnoise": weightnoise.__version__,
        "torch": torch.__version__,
        "engine": engine().partition(" ")[0],
        "metric": metric_name(plan.metric),
        "law": "; ".join(_laws(plan, cells)),
        "model": fingerprint(model),
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
