"""A cell of the evaluation: one law at one level, on all that it covers or on one part, in some draws.

The noise that levels are about is that of the law, or, without one, all noise on the model. What a model carries
besides a law stays as it is: on where and when it is on, at its own strength, and held with the rest.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from weightnoise._attach.attach import detach
from weightnoise._attach.find import every_noise, noises
from weightnoise._attach.hook import activation_noises
from weightnoise._contexts import hold_noise
from weightnoise._errors import NoiseRoundsAwayWarning, NoMatchError, NotVectorizedWarning
from weightnoise._noise.context import AnyNoise, NoiseContext
from weightnoise._noise.control import Override
from weightnoise._noise.precision import fault
from weightnoise._random import seeds as _seeds
from weightnoise._robustness.metric import entries, measure, own_numbers, warn
from weightnoise._robustness.plan import Plan, is_function
from weightnoise._robustness.recalibration import recalibrated
from weightnoise._robustness.vectorized import evaluate_together
from weightnoise._select.choose import Spec
from weightnoise._weights import add_weight_noise

Found = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Cell:
    """One law at one level, on one part.

    Attributes:
        curve: the name of the law.
        place: of the level.
        spec: what is put on the model; None for the noise that it has.
        factor: on its strength.
        part: the one noise that is on; None for all.
        silent: whether all draws are the same.
    """

    curve: str
    place: int
    spec: Spec | None
    factor: float
    part: str | None = None
    silent: bool = False

    @property
    def key(self) -> str:
        """What tells cells apart."""
        return f"{self.place} {self.part or self.curve}"


def find_cells(model: nn.Module, plan: Plan, deterministic: bool) -> list[Cell]:
    """All cells of a plan, in order; errors of a spec come now, before anything is measured."""
    cells: list[Cell] = []
    lost: dict[str, None] = {}
    for curve, law in plan.laws.items():
        function = is_function(law)
        for place, (level, value) in enumerate(plan.levels):
            spec: Any = law
            if function:
                spec = spec(value)
            factor = 1.0 if function else float(value)
            whole = Cell(curve, place, spec, factor)
            with noisy(model, whole) as on:
                lost |= dict.fromkeys(f"{name} at {level}" for name in _lost(model, on))
                alone = len(on) == len(every_noise(model))
                silent = not function and factor == 0 and alone and deterministic
                parts: Sequence[str | None] = list(on) if plan.by_parameter else [None]
                cells += [Cell(curve, place, spec, factor, part, silent) for part in parts]
    if lost:
        warn(
            "The noise at these levels is smaller than half the spacing of the low-precision weights, and most of "
            f"it rounds away: {', '.join(lost)}. What is measured there is the clean model: evaluate float32.",
            NoiseRoundsAwayWarning,
        )
    return cells


def _lost(model: nn.Module, on: Mapping[str, AnyNoise]) -> Iterator[str]:
    """The names of the noises that round away on their weights."""
    names = {noise: name for name, noise in on.items()}
    for _, owner, noise in noises(model):
        weight = owner._parameters.get(noise.tensor_name) if noise in names else None
        if weight is None:
            continue
        factor = abs(noise.control.factor)
        if fault(noise.handed, weight.detach(), factor, noise.strengths()) == "rounds away":
            yield names[noise]


@contextmanager
def noisy(model: nn.Module, cell: Cell) -> Iterator[dict[str, AnyNoise]]:
    """The model with the noise of a cell: all noise that its level is about, by name."""
    before = set(every_noise(model))
    if cell.spec is None:
        on: dict[str, AnyNoise] = {name: noise for name, _, noise in noises(model)}
        on |= {f"{noise.at} of {name}": noise for name, _, noise in activation_noises(model)}
    else:
        _add(model, cell.spec)
        on = {name: noise for name, _, noise in noises(model) if noise not in before}
    try:
        # Noise of the model's own is on also where it is for training only: it is what is asked about.
        opened: list[tuple[AnyNoise, Override]] = [
            (noise, Override(forced=True, scale=cell.factor, off=cell.part not in (None, name)))
            for name, noise in on.items()
        ]
        with NoiseContext(lambda: opened):
            yield on
    finally:
        for owner, own in _owned(model, before).items():
            detach(owner, own)


def _add(model: nn.Module, spec: Any) -> None:
    try:
        add_weight_noise(model, spec)
    except NoMatchError as error:
        if not isinstance(spec, Mapping):
            raise
        raise NoMatchError(*error.problems, "Curves by name are given as laws={name: law}.") from None


def _owned(model: nn.Module, before: Container[AnyNoise]) -> dict[nn.Module, dict[str, Any]]:
    """What has come on the model since, by module and tensor."""
    owned: dict[nn.Module, dict[str, Any]] = {}
    for _, owner, noise in noises(model):
        if noise not in before:
            owned.setdefault(owner, {})[noise.tensor_name] = noise
    return owned


def measure_once(model: nn.Module, plan: Plan, name: str) -> Found:
    """What the metric finds in a model whose noise is as it is; ``name`` tells its own random numbers apart."""
    with own_numbers(model, _seeds.derive_seed(plan.seed, name)), recalibrated(model, plan.recalibrate):
        return measure(model, plan.metric)


def measured(model: nn.Module, plan: Plan, cell: Cell, numbers: Sequence[int]) -> Iterator[Found]:
    """What the metric finds in some draws of a cell, whose noise is on the model."""
    draws = _seeds.numbered(plan.seed, numbers, plan.antithetic)
    done = 0
    if plan.vectorize and not cell.silent:
        try:
            for found in evaluate_together(model, lambda model: entries(plan.metric(model)), draws):
                done += 1
                yield found
        except Exception as error:  # If it is the metric's own, it comes again one by one.
            reason = str(error).strip().partition("\n")[0]
            warn(f"The draws are evaluated one by one, because torch.vmap says: {reason}", NotVectorizedWarning)
    for number, (seed, sign) in list(zip(numbers, draws, strict=True))[done:]:
        with hold_noise(model, seed=seed, sign=sign, reads=plan.reads):
            one = measure_once(model, plan, f"metric {number}")
        yield one
