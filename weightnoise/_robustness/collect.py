"""An evaluation that runs: cell by cell, draw by draw, to a report."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone

import torch
from torch import Tensor, nn

import weightnoise
from weightnoise._contexts import no_noise
from weightnoise._random import draws as _random
from weightnoise._random.philox import engine
from weightnoise._robustness.cells import Cell, Found, find_cells, measured, noisy
from weightnoise._robustness.metric import check_deterministic, fingerprint, measure
from weightnoise._robustness.plan import Plan, check_noisy, check_shared, is_function, law_name, metric_name
from weightnoise._robustness.progress import progress_bar
from weightnoise._robustness.report import RobustnessReport
from weightnoise._robustness.sample import Sample
from weightnoise._torch.modules import state_kept


class Store:
    """What has been measured, by cell and draw; this one forgets."""

    def get(self, key: str, number: int) -> Found | None:
        """What was found in a draw of a cell."""
        return None

    def put(self, key: str, number: int, found: Found) -> None:
        """Keep what was found."""


def run_plan(
    model: nn.Module,
    plan: Plan,
    *,
    threshold: float | None,
    higher_is_better: bool,
    progress: bool = False,
    store: Store | None = None,
) -> RobustnessReport:
    """The report of a plan."""
    store = Store() if store is None else store
    check_shared(model)
    if None in plan.laws.values():
        check_noisy(model)
    with state_kept(model), progress_bar(progress) as tick:
        with no_noise(model):
            clean = [_clean(model, plan, store, number) for number in (0, 1)]
        cells = find_cells(model, plan, check_deterministic(clean))
        found = {}
        for cell in cells:
            with noisy(model, cell):
                found[cell] = _of_cell(model, plan, cell, store, tick)
    curves, masks = _curves(plan, found)
    chips = tuple((plan.seed, number) for number in plan.numbers)
    return RobustnessReport(
        tuple(level for level, _ in plan.levels),
        curves,
        plan.seed,
        threshold,
        higher_is_better,
        _made_by(model, plan, cells),
        plan.antithetic,
        masks,
        chips,
    )


def _clean(model: nn.Module, plan: Plan, store: Store, number: int) -> Found:
    found = store.get("clean", number)
    if found is None:
        found = measure(model, plan.metric, _random.derive_seed(plan.seed, f"metric without noise {number}"))
        store.put("clean", number, found)
    return found


def _of_cell(
    model: nn.Module, plan: Plan, cell: Cell, store: Store, tick: Callable[[str], None]
) -> dict[int, Found]:
    """What was found in each draw of a cell, until it is known precisely enough."""
    asked = plan.numbers[:1] if cell.silent else plan.numbers
    known = {number: store.get(cell.key, number) for number in asked}
    new = measured(model, plan, cell, [number for number, found in known.items() if found is None])
    rows: dict[int, Found] = {}
    for number in asked:
        found = known[number]
        if found is None:
            found = next(new)
            store.put(cell.key, number, found)
        rows[number] = found
        tick(f"{cell.curve} at {plan.levels[cell.place][0]}, draw {len(rows)} of {len(plan.numbers)}")
        if _is_enough(plan, rows):
            break
    return dict.fromkeys(plan.numbers, rows[asked[0]]) if cell.silent else rows


def _is_enough(plan: Plan, rows: Mapping[int, Found]) -> bool:
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


def _made_by(model: nn.Module, plan: Plan, cells: list[Cell]) -> dict[str, str]:
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
