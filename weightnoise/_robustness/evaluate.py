"""How a model holds up under noise: a metric over noise levels and draws."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from weightnoise._attach.find import noises
from weightnoise._checks import check_count, check_strength
from weightnoise._contexts import force_noise, hold_noise, only_noise, scale_noise
from weightnoise._errors import NotVectorizedWarning, OptionError, SpecError
from weightnoise._random import draws as _random
from weightnoise._random.philox import engine
from weightnoise._robustness.metric import Metric, check_deterministic, entries, fingerprint, measure
from weightnoise._robustness.progress import progress_bar
from weightnoise._robustness.report import RobustnessReport, stack
from weightnoise._robustness.vectorized import evaluate_together
from weightnoise._select.choose import Spec
from weightnoise._torch.modules import state_kept
from weightnoise._weights import add_weight_noise, remove_weight_noise
from weightnoise.laws import Noise
from weightnoise.laws._law import is_law

LevelLaw: TypeAlias = Noise | Sequence[Noise] | Callable[[float], Spec]

_LEAST_DRAWS = 4  # Before a standard error is believed.


@dataclass(frozen=True)
class _Plan:
    """One evaluation, apart from the model."""

    metric: Metric
    levels: tuple[float, ...]
    draws: int
    seed: int
    antithetic: bool
    until_sem: float | None
    vectorize: bool


def evaluate_robustness(
    model: nn.Module,
    metric: Metric,
    *,
    levels: Sequence[float],
    law: LevelLaw | Mapping[str, LevelLaw] | None = None,
    draws: int = 20,
    seed: int = 0,
    progress: bool = True,
    antithetic: bool = False,
    by_parameter: bool = False,
    threshold: float | None = None,
    higher_is_better: bool = True,
    until_sem: float | None = None,
    vectorize: bool = False,
) -> RobustnessReport:
    """Evaluate ``metric`` under many held draws of noise ("chips"), at each of several noise levels.

    A draw is one for everything that the metric does, all batches included. Draw k has the same
    random numbers at every level and under every law, so that curves are smooth and comparisons
    paired; it depends on ``seed``, k and the parameter's name alone. Noise is on also where the model's
    own is for training only. The model comes back as it was, also after an exception or Ctrl-C.

    Args:
        model: a plain model, with ``law``; or a model that carries noise, without.
        metric: ``metric(model)`` returns a number, or a dict of them; it puts the model in eval mode
            itself where it should be.
        levels: factors on the strength of the noise; what a function ``law`` is called with.
        law: a law or a list of laws, of which a level is a factor; a function from a level to a spec;
            or a dict of these by name, evaluated side by side; None for the noise on the model.
        draws: how many draws per level.
        seed: of the draws.
        progress: show a progress bar when it takes long (tqdm where it is installed).
        antithetic: use each draw twice, mirrored: the mean of an odd effect is then exact.
        by_parameter: noise on one parameter at a time, a curve for each: which is the most sensitive?
        threshold: what the metric must reach, for the yield.
        higher_is_better: which way the metric is good.
        until_sem: go on to the next level once the standard error of the mean is below this.
        vectorize: evaluate the draws of a level together by `torch.vmap`: up to twice as fast for small models
            on little data, slower where one draw fills the processor; equal up to rounding. ``metric``
            must return tensors, without ``.item()``.

    Returns:
        A report with a curve for each law, parameter and entry of the metric.

    Raises:
        ValueError: for levels, draws or options that cannot be.
        WeightNoiseError: what `add_weight_noise` and `hold_noise` raise; `SpecError` for
            ``by_parameter`` with several laws.

    Warns:
        NotVectorizedWarning: if ``vectorize`` is not possible, with the reason, and draws are evaluated one
            by one: ``.item()`` or a decision by a value in metric or model, batch normalisation in training
            mode, noise on activations.
        NondeterministicMetricWarning: if the metric differs between two runs without noise.

    Example:
        >>> report = evaluate_robustness(
        ...     nn.Linear(4, 1), lambda model: model(torch.ones(1, 4)).item(), levels=[0.0, 0.1], law=Gaussian(1.0)
        ... )
        >>> report.values.shape
        torch.Size([2, 20])

    Source:
        Evaluation over programmed chips: Joshi et al., 2020, arXiv 1906.03138.
    """
    plan = _Plan(metric, _checked(levels, draws, until_sem), draws, seed, antithetic, until_sem, vectorize)
    laws = law if isinstance(law, Mapping) else {"noise" if law is None else _name(law): law}
    if not laws or (by_parameter and len(laws) > 1):
        raise SpecError("A dict of laws needs at least one of them, and by_parameter needs a single one.")
    curves: dict[str, list[list[float]]] = {}
    with state_kept(model), progress_bar(progress) as tick:
        check_deterministic(model, metric)
        for name, one in laws.items():
            for level in plan.levels:
                with _noisy(model, one, level):
                    for part, alone in _parts(model, by_parameter):
                        with alone:
                            found = _rows(model, plan, 0 if _is_silent(one, level) else level, tick)
                        for key, row in found.items():
                            label = " / ".join(filter(None, (part or name, key)))
                            curves.setdefault(label, []).append(row)
    made_by = {
        "torch": torch.__version__,
        "engine": engine().partition(" ")[0],
        "law": "; ".join(map(_name, laws.values())),
        "model": fingerprint(model),
    }
    stacked = {name: stack(rows) for name, rows in curves.items()}
    return RobustnessReport(plan.levels, stacked, seed, threshold, higher_is_better, made_by)


def _checked(levels: Sequence[float], draws: int, until_sem: float | None) -> tuple[float, ...]:
    if len(levels) == 0:
        raise OptionError("evaluate_robustness(levels=...) must hold at least one level.")
    for level in levels:
        check_strength("evaluate_robustness", "levels", level)
    check_count("evaluate_robustness", "draws", draws, 1)
    if until_sem is not None:
        check_strength("evaluate_robustness", "until_sem", until_sem)
    return tuple(map(float, levels))


def _is_function(law: LevelLaw | None) -> bool:
    return callable(law) and not is_law(law)


def _is_silent(law: LevelLaw | None, level: float) -> bool:
    """Whether every draw is the same: a strength of 0."""
    return level == 0 and not _is_function(law)


def _name(law: LevelLaw | None) -> str:
    if law is None:
        return "that of the model"
    return getattr(law, "__name__", "function of the level") if _is_function(law) else repr(law)


@contextmanager
def _noisy(model: nn.Module, law: LevelLaw | None, level: float) -> Iterator[None]:
    """The model with noise of this level, on whatever its mode."""
    if law is not None:
        add_weight_noise(model, law(level) if _is_function(law) else law)  # type: ignore[operator, arg-type]
    try:
        with force_noise(model), scale_noise(model, 1.0 if _is_function(law) else level):
            yield
    finally:
        if law is not None:
            remove_weight_noise(model)


def _parts(model: nn.Module, by_parameter: bool) -> list[tuple[str | None, AbstractContextManager[Any]]]:
    """Contexts in which all of the noise is on, or that of one parameter at a time, with its name."""
    if not by_parameter:
        return [(None, nullcontext())]
    return [(name, only_noise(model, noise)) for name, _, noise in noises(model)]


def _rows(model: nn.Module, plan: _Plan, level: float, tick: Callable[[str], None]) -> dict[str, list[float]]:
    """The values of each entry of the metric over the draws at one level."""
    rows: dict[str, list[float]] = {}
    for draw, found in enumerate(_values(model, plan, together=plan.vectorize and level != 0)):
        for key, value in found.items():
            rows.setdefault(key, []).append(value)
        tick(f"level {level:g}, draw {draw + 1} of {plan.draws}")
        if level == 0:
            return {key: row * plan.draws for key, row in rows.items()}
        if plan.until_sem is not None and all(_sem(row) < plan.until_sem for row in rows.values()):
            break
    return rows


def _values(model: nn.Module, plan: _Plan, together: bool) -> Iterator[dict[str, float]]:
    """Measure the metric in each draw."""
    draws = _random.numbered(plan.seed, plan.draws, plan.antithetic)
    done = 0
    if together:
        try:
            for found in evaluate_together(model, lambda model: entries(plan.metric(model)), draws):
                done += 1
                yield found
        except Exception as error:  # If it is the metric's own, it comes again one by one.
            reason = str(error).strip().partition("\n")[0]
            message = f"The draws are evaluated one by one, because torch.vmap says: {reason}"
            warnings.warn(message, NotVectorizedWarning, stacklevel=4)
    for seed, sign in draws[done:]:
        with hold_noise(model, seed=seed, sign=sign):
            found = measure(model, plan.metric)
        yield found


def _sem(row: Sequence[float]) -> float:
    return math.inf if len(row) < _LEAST_DRAWS else statistics.stdev(row) / math.sqrt(len(row))
