"""Checkpointed regions: their recomputation sees the contexts and the draws of their forward.

Activation checkpointing runs a function again in the backward. By then contexts may have opened and closed, a
schedule may have gone on, and the forward of the module that owns a weight is over. So the first noisy read in a
region puts a `Region` in the place of the function that torch will call again. It keeps what held then, and lays
it on this thread for the length of the recomputation. Noise that a region's forward never read was off there.

Compiled code runs no Python of ours, so none of its reads can do this. But contexts and schedules open, close and
step in Python: before one of them changes what holds, it is kept for every region that waits for its backward, and
holds again, for all threads, while compiled code there runs a second time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

import torch
from torch import Tensor

from weightnoise._errors import RecomputedReadWarning, WeightNoiseError
from weightnoise._noise.frames import OPENERS, Frames
from weightnoise._noise.recipe import Recipe
from weightnoise._noise.regions import Held, Region, Then
from weightnoise._noise.resting import bring_back, reads_are_compiled
from weightnoise._torch.checkpoints import Checkpoint, running_checkpoints, waiting_checkpoints
from weightnoise._torch.modes import in_backward, may_be_in_checkpoint
from weightnoise._torch.tracing import while_tracing

if TYPE_CHECKING:
    from weightnoise._noise.control import NoiseControl
    from weightnoise._noise.held import HeldDraw
    from weightnoise.laws import Law

T = TypeVar("T")


class Recalled:
    """The control of a read in a checkpointed region; elsewhere that is `NoiseControl`.

    Attributes:
        held: the draw to use, where one is held.
        factor: multiplies the strength.
    """

    def __init__(self, held: HeldDraw | None, factor: float, forwards: list[Region], again: Region | None) -> None:
        self.held, self.factor = held, factor
        self._forwards, self._again = forwards, again
        if again is not None and not again.repeats_numbers:
            for region in forwards:  # They draw what that forward drew, from no state of torch's.
                region.repeats_numbers = False

    def fresh(self, noise: Any, make: Callable[[], T], numbers: bool = True) -> T:
        """A fresh draw; in a recomputation for which torch repeats no ``numbers``, that of the forward."""
        again = None if self._again is None or (numbers and self._again.repeats_numbers) else self._again
        draw: T = make() if again is None else again.again(noise)
        for region in self._forwards:
            if not (numbers and region.repeats_numbers):
                region.draws.setdefault(noise, []).append(draw)
        return draw

    def noted(self, key: Any) -> bool:
        """Whether the forward has looked up something that its recomputation has yet to look up."""
        again = self._again
        return again is not None and again.drawn.get(key, -1) + 1 < len(again.draws.get(key, ()))


# What holds for one read.
EffectiveControl: TypeAlias = Union["NoiseControl", Recalled]


@while_tracing
def _reads_are_compiled() -> bool:
    """Called when a read is traced, and by no compiled code."""
    bring_back()
    return True


def keep_for_compiled(control: NoiseControl, then: Held) -> None:
    """Keep what has held for a noise until now, for compiled code in regions that a backward may compute again."""
    if reads_are_compiled() and not torch.compiler.is_compiling():
        for checkpoint in waiting_checkpoints():
            if not isinstance(checkpoint.owner, Recipe):  # That makes a weight again, and asks for nothing.
                _region(checkpoint).compiled.setdefault(control, then)


def fresh(effective: EffectiveControl, noise: Any, make: Callable[[], T], numbers: bool = True) -> T:
    """A fresh draw, where nothing is held; or what is no random number, and is looked up once for a forward."""
    return effective.fresh(noise, make, numbers) if isinstance(effective, Recalled) else make()


def fresh_in_regions(key: Any, make: Callable[[], T]) -> T:
    """What is made of fresh numbers in no read of a noise, such as a hold that is entered in a region."""
    if torch.compiler.is_compiling() or not may_be_in_checkpoint():
        return make()
    forwards = running_checkpoints(OPENERS)
    again = _region(forwards.pop()) if forwards and forwards[-1].again else None
    return Recalled(None, 1.0, [_region(one) for one in forwards], again).fresh(key, make)


def held_draw(effective: EffectiveControl, held: HeldDraw, noise: Any, value: Tensor, law: Law) -> Any:
    """The draw that is held, with fresh readings where these were asked for."""
    if held.reads is not None and isinstance(effective, Recalled):
        raise WeightNoiseError(_FRESH_READS.format(name=noise.name))
    return held.draw(law, value)


def regions_around() -> tuple[Region, ...]:
    """The checkpointed regions that this thread is in, whether for the first time or again."""
    found = running_checkpoints(OPENERS) if may_be_in_checkpoint() else ()
    return tuple(_region(one) for one in found)


def effective_control(noise: Any, training: bool, frames: Frames | None = None) -> EffectiveControl | None:
    """Return the control of a read of ``noise`` now, None while noise is off; arguments as of the next one."""
    if torch.compiler.is_compiling():
        _reads_are_compiled()
    elif may_be_in_checkpoint():
        return effective_control_in_region(noise, training, frames)
    control: NoiseControl = noise.control
    return control if control.live(training) else None


def effective_control_in_region(
    noise: Any, training: bool, frames: Frames | None = None
) -> EffectiveControl | None:
    """Return the control of a read of ``noise`` now, where a checkpoint may be running; None where noise is off.

    Args:
        noise: has a ``control``.
        training: whether the module is in training mode.
        frames: of the module that owns the weight.
    """
    control: NoiseControl = noise.control
    running = running_checkpoints(OPENERS)
    place = next((place for place, one in enumerate(running) if one.again), None)
    if place is None:
        region, now = None, Then(tuple(control.overrides), control.scheduled, training)
    else:
        region = _region(running[place])
        then = region.then.get(noise)
        if then is None:
            return None
        inside = tuple(override for override in control.overrides if region in override.regions)
        now = Then((*then.overrides, *inside), then.scheduled, then.training)
    off, gated, held, factor = control.resolved(now.overrides, now.scheduled)
    if off or (gated and not now.training):
        return None
    if held is None and region is None and in_backward():
        warnings.warn(_READ_AGAIN.format(name=noise.name), RecomputedReadWarning, stacklevel=2)
    if not running:
        return control
    forwards = [_remember(one, noise, now, frames) for one in running[:place]]
    return Recalled(held, factor, forwards, region)


def _remember(checkpoint: Checkpoint, noise: Any, now: Then, frames: Frames | None) -> Region:
    region = _region(checkpoint)
    around = tuple(override for override in now.overrides if region not in override.regions)
    region.then.setdefault(noise, Then(around, now.scheduled, now.training))
    if frames is not None and frames.running and frames not in region.before:
        kept = frames.running[-1]
        if kept is not None and not _is_any(frames.running, checkpoint.opened):
            region.before[frames] = _shared(kept, checkpoint)
    return region


def _shared(kept: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the draws before a region, with the noisy weights where its recomputation has no graph of its own."""
    drawn = {name: value for name, value in kept.items() if isinstance(value, tuple)}
    if checkpoint.has_own_graph:
        return {name: (value[0], None, None, None) for name, value in drawn.items()}
    return drawn


def _is_any(one: object, among: Iterable[object]) -> bool:
    return any(one is other for other in among)


def _region(checkpoint: Checkpoint) -> Region:
    """That of a running checkpoint, put in the place of its function where there is none yet."""
    if not isinstance(checkpoint.function, Region):
        checkpoint.function = Region(checkpoint.function, checkpoint.repeats_numbers)
    return checkpoint.function


_READ_AGAIN = (
    "The noise on '{name}' is drawn in a backward, in no checkpoint of torch's. If this computes a forward again, "
    "as reversible layers, adjoint methods and checkpoints of other libraries do, the gradient is right only if "
    "that code restores torch's random state and no context on the noise has changed since. Inside "
    "`with weightnoise.hold_noise(model):` around forward and backward it is right in any case."
)

_FRESH_READS = (
    "The noise on '{name}' is read anew by each forward inside `hold_noise(reads='fresh')`, and a checkpoint "
    "computes a forward again, with other numbers. Use reads='held', or take the forward out of the checkpoint."
)
