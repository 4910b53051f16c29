"""The strength of the noise over training: schedules, and a strength that adapts."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from weightnoise._attach.find import every_noise
from weightnoise._checks import check_model, check_strength
from weightnoise._errors import OptionError, SpecError
from weightnoise._holds import require_noise
from weightnoise._noise.context import AnyNoise
from weightnoise._select.noises import chosen_noises
from weightnoise._select.patterns import Key


class NoiseScheduler:
    """Multiplies the strength of a model's noise by ``fn(step)``, in the manner of torch's LambdaLR.

    The factor for step 0 is set when the scheduler is made, the next by each `step`. It multiplies
    with `scale_noise` and stays with copies of the model. Rates, standard deviations and bounds are
    multiplied; what has no random strength (`Clip`, `Quantize`) stays as it is. Made before compiled code
    first runs, it never makes `torch.compile` compile again.

    With ``which`` it is for a part of the noise. The factor of a noise is the product of the schedulers on
    it, where several overlap, with the factor of `AdaptiveNoise`. A scheduler takes the place of an earlier one
    with the same ``which``.

    Args:
        model: a module with weight noise.
        fn: from the number of steps taken to a factor, finite and not negative.
        which: a shell glob on the full clean names of the parameters, and of the modules whose activations carry
            noise (``*`` crosses dots); a module class; or a sequence of those. None for all. One of the names of
            a tied parameter is enough.

    Raises:
        NotNoisyError: if the model carries no weight noise, here and in `step`.
        NoMatchError: if a pattern or class fits no noise; `SpecError` for what is neither.
        ValueError: if ``fn`` returns no such factor, or one that a law's rate cannot be multiplied by;
            no noise is changed then.

    Example:
        >>> model = add_weight_noise(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), 0.1)
        >>> schedule = NoiseScheduler(model, linear_ramp(100))
        >>> schedule.step()
        >>> schedule.factor
        0.01
        >>> last = NoiseScheduler(model, lambda step: 0.5, which="1.*")  # 0.005 there

    Source:
        A start step of 20,000: weight noise of speech recognisers in Lingvo, Shen et al., 2019,
        arXiv 1902.08295.
    """

    def __init__(
        self, model: nn.Module, fn: Callable[[int], float], which: Key | Sequence[Key] | None = None
    ) -> None:
        check_model(model)
        self.model = model
        self.fn = fn
        self.which = (which,) if isinstance(which, (str, type)) else which if which is None else tuple(which)
        self._go_to(0)

    def step(self) -> None:
        """Count one step and set its factor."""
        self._go_to(self.steps + 1)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps taken; ``fn`` and ``which`` are not saved."""
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved number of steps."""
        self._go_to(int(state_dict["steps"]))

    def _go_to(self, steps: int) -> None:
        factor = float(self.fn(steps))
        found = every_noise(self.model) if self.which is None else chosen_noises(self.model, self.which)
        set_factor(self.model, found, self.which, factor)
        self.steps, self.factor = steps, factor


class AdaptiveNoise:
    """Parameter noise whose strength follows a target distance in the output, for exploration.

    Each `update` multiplies the factor by ``rate`` where the distance between clean and noisy outputs
    (actions, logits) was below the target, and divides it where it was above. It multiplies with the
    factors of schedulers; a second one takes the place of the first.

    Args:
        model: a module with weight noise.
        target: the distance to keep, in the units of the distance that is measured.
        rate: how fast the strength changes, above 1.
        initial: the first factor.

    Raises:
        NotNoisyError: if the model carries no weight noise.
        ValueError: for a target, rate or first factor that is not positive, or a rate of 1 and less.

    Example:
        >>> policy = add_weight_noise(nn.Linear(3, 2), 0.1)
        >>> adaptive = AdaptiveNoise(policy, target=0.2)
        >>> adaptive.update(0.05)
        1.01

    Source:
        Plappert et al., Parameter space noise for exploration, 2017, arXiv 1706.01905.
    """

    def __init__(self, model: nn.Module, target: float, *, rate: float = 1.01, initial: float = 1.0) -> None:
        check_model(model)
        named = {"target": target, "rate": rate, "initial": initial}
        target, rate, initial = (check_strength("AdaptiveNoise", *pair) for pair in named.items())
        if target == 0 or initial == 0 or rate <= 1:
            raise OptionError("AdaptiveNoise needs target > 0, initial > 0 and rate > 1.")
        self.model, self.target, self.rate = model, target, rate
        self._set(initial)
        self.factor = initial

    def update(self, distance: float) -> float:
        """Raise or lower the strength after measuring ``distance``; returns the new factor."""
        distance = check_strength("AdaptiveNoise.update", "distance", distance)
        factor = self.factor * self.rate if distance < self.target else self.factor / self.rate
        self._set(factor)
        self.factor = factor
        return factor

    def state_dict(self) -> dict[str, Any]:
        """The factor."""
        return {"factor": self.factor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved factor."""
        self._set(float(state_dict["factor"]))
        self.factor = float(state_dict["factor"])

    def _set(self, factor: float) -> None:
        set_factor(self.model, every_noise(self.model), "adaptive", factor)


def set_factor(model: nn.Module, found: Iterable[AnyNoise], schedule: Hashable, factor: float) -> None:
    """Multiply the strength of what was found on ``model`` by ``factor``, until its schedule's next call.

    Args:
        model: tells the device.
        found: the noise.
        schedule: tells schedules apart, whose factors multiply.
        factor: not negative.
    """
    factor = check_strength("A schedule", "factor", factor)
    noises = require_noise(found)
    problems = dict.fromkeys(
        noise.handed.factor_problem(noise.control.scheduled_with(schedule, factor)) for noise in noises
    )
    if problems.keys() - {None}:
        raise SpecError(*(f"{problem}." for problem in problems if problem))
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    for noise in noises:
        noise.control.schedule(schedule, factor, device)


@dataclass(frozen=True)
class Ramp:
    """A function of the step: ``first`` until ``start``, ``last`` from ``start + steps`` on, a ramp between."""

    steps: int
    start: int
    first: float
    last: float
    cosine: bool

    def __post_init__(self) -> None:
        if self.steps < 0 or self.start < 0:
            raise OptionError(f"A ramp needs steps >= 0 and start >= 0, got {self.steps!r} and {self.start!r}.")

    def __call__(self, step: int) -> float:
        """The factor at ``step``."""
        if step < self.start:
            return self.first
        done = min((step - self.start) / self.steps, 1.0) if self.steps else 1.0
        if self.cosine:
            done = (1.0 - math.cos(math.pi * done)) / 2.0
        return self.first + (self.last - self.first) * done


def linear_ramp(steps: int, *, start: int = 0, first: float = 0.0, last: float = 1.0) -> Ramp:
    """A factor that goes from ``first`` to ``last`` in a straight line, for `NoiseScheduler`.

    Args:
        steps: length of the ramp.
        start: the step at which it begins.
        first: the factor before.
        last: the factor after.

    Example:
        >>> [linear_ramp(4)(step) for step in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return Ramp(steps, start, first, last, cosine=False)


def cosine_ramp(steps: int, *, start: int = 0, first: float = 0.0, last: float = 1.0) -> Ramp:
    """A factor that goes from ``first`` to ``last`` along half a cosine, for `NoiseScheduler`.

    Args:
        steps: length of the ramp.
        start: the step at which it begins.
        first: the factor before; 1 with ``last=0`` for noise that fades out.
        last: the factor after.

    Example:
        >>> [round(cosine_ramp(4)(step), 3) for step in range(5)]
        [0.0, 0.146, 0.5, 0.854, 1.0]
    """
    return Ramp(steps, start, first, last, cosine=True)


def start_at(step: int) -> Ramp:
    """No noise before ``step``, full noise from it on, for `NoiseScheduler`.

    Args:
        step: the first step with noise.

    Example:
        >>> [start_at(2)(step) for step in range(4)]
        [0.0, 0.0, 1.0, 1.0]
    """
    return Ramp(0, step, 0.0, 1.0, cosine=False)
