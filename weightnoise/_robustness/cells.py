"""A cell of the evaluation: one law at one level, on all that it covers or on one part, in some draws.

The noise that levels are about is that of the law, or, without one, all noise on the model. What a model carries
besides a law stays as it is: on where and when it is on, at its own strength, and held with the rest.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

from torch import nn

from weightnoise._attach.attach import detach
from weightnoise._attach.find import every_noise, find_noise, noises
from weightnoise._errors import InfiniteNoiseWarning, NoiseRoundsAwayWarning, NoMatchError, NotVectorizedWarning
from weightnoise._holds import held_overrides
from weightnoise._noise.context import AnyNoise, NoiseContext
from weightnoise._noise.control import Override
from weightnoise._noise.precision import Fault, fault
from weightnoise._random import seeds as _seeds
from weightnoise._robustness.metric import entries, measure, own_numbers, warn
from weightnoise._robustness.plan import Plan, is_function
from weightnoise._robustness.recalibration import recalibrated
from weightnoise._robustness.vectorized import evaluate_together
from weightnoise._select.candidates import clean_tensor
from weightnoise._select.choose import Spec
from weightnoise._select.resolve import resolve
from weightnoise._weights import add_weight_noise, attach_all

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
    lost: dict[str, list[str]] = {"rounds away": [], "infinite": []}
    for curve, law in plan.laws.items():
        function = is_function(law)
        wholes = []
        for place, (_, value) in enumerate(plan.levels):
            spec: Any = law
            spec, factor = (spec(value), 1.0) if function else (spec, float(value))
            wholes.append(Cell(curve, place, spec, factor))
        for alike in by_spec(wholes):
            with added(model, alike[0].spec) as on:
                alone = len(on) == len(every_noise(model))
                for whole in alike:
                    level, _ = plan.levels[whole.place]
                    with at_level(on, whole):
                        for name, kind in _lost(model, on):
                            lost[kind].append(f"{name} at {level}")
                    silent = not function and whole.factor == 0 and alone and deterministic
                    parts: Sequence[str | None] = list(on) if plan.by_parameter else [None]
                    cells += [replace(whole, part=part, silent=silent) for part in parts]
    if away := dict.fromkeys(lost["rounds away"]):
        warn(
            "The noise at these levels is smaller than half the spacing of the low-precision weights, and most of "
            f"it rounds away: {', '.join(away)}. What is measured there is the clean model: evaluate float32.",
            NoiseRoundsAwayWarning,
        )
    if infinite := dict.fromkeys(lost["infinite"]):
        warn(
            "The noise at these levels is so strong that noisy weights are infinite in their dtype: "
            f"{', '.join(infinite)}. Use weaker noise.",
            InfiniteNoiseWarning,
        )
    return cells


def _lost(model: nn.Module, on: Mapping[str, AnyNoise]) -> Iterator[tuple[str, Fault]]:
    """The names of the noises that their weights cannot hold, and why."""
    names = {noise: name for name, noise in on.items()}
    for _, owner, noise in noises(model):
        weight = clean_tensor(owner, noise.tensor_name) if noise in names else None
        if weight is None:
            continue
        found = fault(noise.handed, weight.detach(), abs(noise.control.factor), noise.strengths())
        if found is not None:
            yield names[noise], found


def by_spec(cells: Iterable[Cell]) -> list[list[Cell]]:
    """The cells in succession that put the same on the model, which is put there once for all of them."""
    return [list(alike) for _, alike in groupby(cells, lambda cell: id(cell.spec))]


@contextmanager
def noisy(model: nn.Module, cell: Cell, looked: bool = True) -> Iterator[dict[str, AnyNoise]]:
    """The model with the noise of a cell: all noise that its level is about, by name."""
    with added(model, cell.spec, looked) as on, at_level(on, cell):
        yield on


def at_level(on: Mapping[str, AnyNoise], cell: Cell) -> NoiseContext:
    """The context in which the noise of a cell is at its level, and on its part alone."""
    # Noise of the model's own is on also where it is for training only: it is what is asked about.
    opened: list[tuple[AnyNoise, Override]] = [
        (noise, Override(forced=True, scale=cell.factor, off=cell.part not in (None, name)))
        for name, noise in on.items()
    ]
    return NoiseContext(lambda: opened)


@contextmanager
def added(model: nn.Module, spec: Spec | None, looked: bool = True) -> Iterator[dict[str, AnyNoise]]:
    """The model with a spec on it; None for what it carries. All noise that levels are about, by name.

    ``looked``: `find_cells` tells, level by level, of noise that the weights cannot hold; else adding it does.
    """
    before = set(every_noise(model))
    if spec is None:
        found = find_noise(model)
        on: dict[str, AnyNoise] = {name: noise for name, _, noise in found.weights}
        on |= {f"{noise.at} of {name}": noise for name, _, noise in found.activations}
    else:
        _add(model, spec, looked)
        on = {}
        for name, owner, noise in noises(model):
            if noise not in before:
                on[name] = noise
                # Each read would look again.
                noise.lookout.warned |= looked and clean_tensor(owner, noise.tensor_name) is not None
    try:
        yield on
    finally:
        for owner, own in _owned(model, before).items():
            detach(owner, own)


def _add(model: nn.Module, spec: Any, looked: bool) -> None:
    try:
        if looked:
            attach_all(resolve(model, spec, 2, "shared", None, "keep"), "always", "shared", "keep")
        else:
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
    on = find_noise(model)  # Once for all draws: a metric that adds noise of its own has it outside of these.
    for number, (seed, sign) in list(zip(numbers, draws, strict=True))[done:]:
        with NoiseContext(partial(held_overrides, on, seed, sign, plan.reads)):
            one = measure_once(model, plan, f"metric {number}")
        yield one
