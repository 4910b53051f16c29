"""A checkpointed region: the function that a backward computes again, and what held in its forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from weightnoise._noise.frames import Frames

if TYPE_CHECKING:
    from weightnoise._noise.control import NoiseControl, Override

# The contexts that are open and the factor of the schedule.
Held: TypeAlias = "tuple[Sequence[Override], float]"


@dataclass(frozen=True, eq=False)
class Then:
    """The control of one noise in the forward of a region.

    Attributes:
        overrides: those of the contexts that were open around the region.
        scheduled: the factor of the schedule.
        training: whether the module was in training mode.
    """

    overrides: tuple[Override, ...]
    scheduled: float
    training: bool


class Region:
    """A checkpointed function, and what its forward saw of the noises; called only to compute it again.

    Attributes:
        then: what held, by noise.
        before: what an owner's forward around the region had drawn before it, by scope.
        draws: the draws of each noise in order, where torch does not put the random state back.
        compiled: what held for compiled code, by control, for all that has changed since.
    """

    def __init__(self, function: Callable[..., Any], repeats_numbers: bool) -> None:
        self.function = function
        self.repeats_numbers = repeats_numbers
        self.then: dict[Any, Then] = {}
        self.before: dict[Frames, dict[str, Any]] = {}
        self.draws: dict[Any, list[Any]] = {}
        self.drawn: dict[Any, int] = {}
        self.compiled: dict[NoiseControl, Held] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the function again."""
        controls = [noise.control for noise in self.then]
        for control in (*controls, *self.compiled):
            if control.removed:
                raise RuntimeError(_REMOVED.format(name=control.removed))
        self.drawn = {}
        now = {control: control.put(then) for control, then in self.compiled.items()}
        for control in controls:
            control.recall(1)
        running = [(frames.running, dict(before)) for frames, before in self.before.items()]
        for stack, kept in running:
            stack.append(kept)
        try:
            return self.function(*args, **kwargs)
        finally:
            for stack, _ in running:
                stack.pop()
            for control in controls:
                control.recall(-1)
            for control, held in now.items():
                control.put(held)

    def again(self, noise: Any) -> Any:
        """The next draw of a noise, as it was in the forward."""
        place = self.drawn[noise] = self.drawn.get(noise, -1) + 1
        return self.draws[noise][place]


_REMOVED = (
    "The noise on '{name}' was removed between a checkpointed forward and its backward, which computes that "
    "forward again. Call remove_weight_noise or remove_activation_noise after the backward."
)
