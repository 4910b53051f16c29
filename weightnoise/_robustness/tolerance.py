"""How much noise a model can take: the largest level at which it still reaches a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from torch import nn

from weightnoise._checks import check_count, check_model, check_strength
from weightnoise._errors import OptionError, WeightNoiseError
from weightnoise._holds import Reads
from weightnoise._robustness.cells import Cell, Found, find_cells
from weightnoise._robustness.collect import report_of, reported
from weightnoise._robustness.executors import run_on
from weightnoise._robustness.goal import DOUBLINGS, Goal, Tolerance, search
from weightnoise._robustness.intervals import check_confidence
from weightnoise._robustness.metric import Metric, model_fingerprint
from weightnoise._robustness.plan import LevelLaw, Plan, law_name, make_plan
from weightnoise._robustness.report import RobustnessReport
from weightnoise._robustness.running import Store, evaluation, rows_of, sample_of
from weightnoise._robustness.sample import Sample


def find_level(
    model: nn.Module,
    metric: Metric,
    law: LevelLaw | None = None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    quantile: float | None = None,
    chip_yield: float | None = None,
    first: float = 0.1,
    highest: float | None = None,
    resolution: float = 0.02,
    draws: int = 20,
    seed: int = 0,
    antithetic: bool = False,
    reads: Reads = "held",
    confidence: float = 0.95,
    progress: bool = True,
    executor: Executor | None = None,
) -> Tolerance:
    """The largest level of noise at which a model still reaches a target: the tolerance number.

    Levels are doubled until the target is missed, and the last step is bisected. Each level is measured under the
    same draws, as by `evaluate_robustness`, so that the metric falls smoothly; where it does not fall with the
    level, one of the levels at which it crosses the target is found.

    Args:
        model: as for `evaluate_robustness`.
        metric: ``metric(model)`` returns a number.
        law: a law, a spec, or a function from a level to one; None for the noise on the model.
        at_least: the target of a metric that is good when it is high; or
        at_most: that of one that is good when it is low.
        quantile: compare this quantile of the draws, such as 0.05, in the place of the mean.
        chip_yield: the share of draws that must reach the target, such as 0.95, in the place of the mean.
        first: the level to try first.
        highest: the largest level to try; by default a million times the first.
        resolution: when to stop the bisection, as a share of the level.
        draws: how many, at each level.
        seed: of the draws.
        reads: ``"held"`` for one draw of everything in a chip; ``"fresh"`` holds what belongs to the hardware,
            and draws what belongs to a reading anew in each forward, as `hold_noise` does.
        antithetic: use each draw twice, mirrored.
        confidence: of the interval.
        progress: show a progress bar when it takes long.
        executor: as for `evaluate_robustness`.

    Returns:
        A `Tolerance`; also where the target is reached never, or always.

    Raises:
        ValueError: for options that cannot be.
        WeightNoiseError: what `evaluate_robustness` raises.
        Exception: what the metric raises, with the attribute ``report``, as from `evaluate_robustness`.

    Example:
        >>> error = lambda model: (model(torch.ones(4)) - 1).square().item()
        >>> found = find_level(nn.Linear(4, 1), error, Gaussian(1.0), at_most=100.0, progress=False)
        >>> found.verdict, found.interval[0] <= found.level <= found.interval[1]
        ('found', True)

    Source:
        The interval inverts a test at each level, as that of Fieller, Some problems in interval estimation, 1954.
    """
    check_model(model)
    goal = make_goal(at_least, at_most, quantile, chip_yield)
    confidence = check_confidence("find_level", confidence)
    draws = check_count("find_level", "draws", draws, 2)
    limits = make_limits(first, highest, resolution)
    options = {
        "seed": seed,
        "antithetic": antithetic,
        "reads": reads,
        "by_parameter": False,
        "until_sem": None,
        "vectorize": False,
    }
    plan = make_plan(metric, [0.0], law, None, draws, **options)
    return run_search(model, plan, goal, limits, confidence, progress=progress, executor=executor)


def make_limits(first: float, highest: float | None, resolution: float) -> dict[str, float]:
    """Check where a search begins and ends."""
    for name, value in (("first", first), ("highest", highest), ("resolution", resolution)):
        if value is not None and check_strength("find_level", name, value) == 0:
            raise OptionError(f"find_level({name}=...) must be above 0, got {value!r}.")
    return {"first": first, "highest": highest or first * 2.0**DOUBLINGS, "resolution": resolution}


def make_goal(
    at_least: float | None, at_most: float | None, quantile: float | None, chip_yield: float | None
) -> Goal:
    """Check what is asked of a level."""
    target = at_most if at_least is None else at_least
    if target is None or (at_least is not None and at_most is not None):
        raise OptionError(
            "find_level needs a target: at_least=..., or at_most=... for a metric that is good when low."
        )
    if quantile is not None and chip_yield is not None:
        raise OptionError("find_level takes quantile=... or chip_yield=..., not both.")
    for name, share in (("quantile", quantile), ("chip_yield", chip_yield)):
        if share is not None and not 0 < share < 1:
            raise OptionError(f"find_level({name}=...) must be a number between 0 and 1, got {share!r}.")
    return Goal(float(target), at_least is not None, quantile, chip_yield)


def run_search(
    model: nn.Module,
    plan: Plan,
    goal: Goal,
    limits: Mapping[str, float],
    confidence: float,
    *,
    progress: bool = False,
    store: Store | None = None,
    executor: Any = None,
) -> Tolerance:
    """Search for the largest level of the one law of a plan."""
    (curve, law), *_ = plan.laws.items()
    cells: dict[float, Sequence[Cell]] = {}
    kept = Store() if store is None else store
    weights = model_fingerprint(model)

    def at(level: float) -> Plan:
        return replace(plan, laws={f"{curve} at {level!r}": law}, levels=((level, level),))

    def report() -> RobustnessReport:
        name = law_name(law) if curve != "noise" else curve
        rows = {level: rows_of(kept, plan, of[0]) for level, of in sorted(cells.items())}
        levels = [level for level, found in rows.items() if found]
        found = {
            replace(cells[level][0], curve=name, place=place): rows[level] for place, level in enumerate(levels)
        }
        whole = replace(plan, levels=tuple((level, level) for level in levels))
        return report_of(weights, whole, found, kept, goal.target, goal.higher_is_better)

    def so_far() -> dict[str, Any]:
        found = report()
        return {**found.to_dict(), "done": [sum(int(mask.sum()) for mask in found.measured.values()), 0]}

    with reported(report), evaluation(model, plan, progress, kept, run_on(executor, model)) as run:
        kept.so_far = so_far

        def allowed(level: float) -> bool:
            try:
                cells[level] = find_cells(model, at(level), run.deterministic)
            except WeightNoiseError:
                if level == 0:
                    raise
                return False  # A rate above 1, such as that of stuck weights.
            return True

        def sample_at(level: float) -> Sample:
            allowed(level)
            (rows,) = run(at(level), cells[level]).values()
            return _sample(plan, rows, goal)

        level, interval, verdict, _ = search(sample_at, goal, confidence=confidence, allowed=allowed, **limits)
    return Tolerance(level, interval, verdict, goal, confidence, report())


def _sample(plan: Plan, rows: Mapping[int, Found], goal: Goal) -> Sample:
    entries = dict.fromkeys(name for found in rows.values() for name in found)
    if list(entries) != [""]:
        named = ", ".join(map(repr, entries))
        raise OptionError(
            f"find_level needs a metric that returns one number, and got {named}. Choose one: "
            "lambda model: metric(model)[name]."
        )
    return replace(sample_of(plan, rows, ""), higher_is_better=goal.higher_is_better)
