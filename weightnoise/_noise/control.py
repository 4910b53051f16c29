"""Whether a noise is on, how strong it is, and which draw it uses: what the open contexts say."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from weightnoise._noise.checkpoints import keep_for_compiled, regions_around
from weightnoise._noise.held import HeldDraw
from weightnoise._noise.regions import Held, Region
from weightnoise._noise.resting import Made

When: TypeAlias = Literal["always", "training"]


@dataclass(frozen=True, eq=False)
class Override:
    """The say of one open context on one noise.

    Attributes:
        regions: the checkpointed regions in which the context was opened.
    """

    off: bool = False
    forced: bool = False
    scale: float = 1.0
    held: HeldDraw | None = None
    regions: tuple[Region, ...] = field(
        default_factory=lambda: () if torch.compiler.is_compiling() else regions_around()
    )


_OFF = Override(off=True, regions=())


@dataclass(frozen=True, eq=False)
class Instead:
    """The overrides that replace the open contexts while compiled code in a checkpoint runs a second time.

    Attributes:
        hidden: the contexts that were open when that began.
    """

    overrides: Sequence[Override]
    scheduled: float
    hidden: tuple[Override, ...]


class Resolved(NamedTuple):
    """The sum of several overrides."""

    off: bool
    gated: bool
    held: HeldDraw | None
    factor: float


class NoiseControl:
    """The say of all open contexts on one noise, worked out whenever one opens or closes.

    A copy is inside the contexts that the original is in, until they close; a pickle is in none. Both keep what a
    schedule has set.

    Attributes:
        off: whether a read can tell at once that a context has switched the noise off.
        gated: whether a read can tell at once that the noise is off in eval mode.
        held: the draw to use, where one is held.
        rest: the noisy weight at rest, if there is one; another list whenever anything above may have changed.
        factor: multiplies the strength; negative for a mirrored draw.
        schedules: the factor of each schedule, by what tells schedules apart.
        scheduled: their product.
        recomputing: how many checkpointed regions are being computed again, in any thread.
        removed: the name of the noise once it was taken off its module.
    """

    def __init__(self, when: When, schedules: Mapping[Hashable, float] | None = None) -> None:
        self.when = when
        self.overrides: list[Override] = []
        self.schedules = dict(schedules or {})
        self.scheduled = math.prod(self.schedules.values(), start=1.0)
        self.removed = ""
        self.recomputing = 0
        self._instead: Instead | None = None
        self._schedule: Tensor | None = None  # The same number, for compiled code: a float would be a constant.
        self._lock = threading.Lock()
        # The copies of each other that were made inside a context.
        self._family: list[weakref.ref[NoiseControl]] = []
        keep_for_compiled(self, ([_OFF], 1.0))
        self._resolve()

    def scheduled_with(self, schedule: Hashable, factor: float) -> float:
        """The product of all schedules, once this one's factor is ``factor``."""
        return math.prod({**self.schedules, schedule: factor}.values(), start=1.0)

    def schedule(self, schedule: Hashable, factor: float, device: torch.device) -> None:
        """Multiply the strength by ``factor`` until the next call for the same schedule; schedules multiply."""
        with self._locked():
            product = self.scheduled_with(schedule, factor)
            if self._schedule is None or self._schedule.device != device:
                with torch.inference_mode(False):  # Else no later step could write into it.
                    self._schedule = torch.full((), product, dtype=torch.float32, device=device)
            keep_for_compiled(self, self._now())
            self._schedule.fill_(product)
            self.schedules[schedule] = factor
            self.scheduled = product
            self._resolve()

    def compiled_factor(self) -> float:
        """The factor, for compiled code: a 0-dim tensor under a schedule, so that a step recompiles nothing."""
        if self._schedule is None:
            return self.factor
        product: Any = self._schedule * self._by_contexts
        return product  # type: ignore[no-any-return]

    def add(self, override: Override) -> None:
        """Let a context have its say."""
        with self._locked():
            keep_for_compiled(self, self._now())
            self.overrides = [*self.overrides, override]
            self._resolve()

    def discard(self, override: Override) -> None:
        """Take a context's say back, from copies too; contexts may close in any order."""
        self._pull(override)
        for other in self._relatives():
            other._pull(override)

    def exchange(self, before: Override, after: Override) -> None:
        """Let a context say something else, in its place among the others; on copies too."""
        for control in (self, *self._relatives()):
            with control._locked():
                keep_for_compiled(control, control._now())
                control.overrides = [after if other is before else other for other in control.overrides]
                control._resolve()

    def _pull(self, override: Override) -> None:
        with self._locked():
            keep_for_compiled(self, self._now())
            self.overrides = [other for other in self.overrides if other is not override]
            self._resolve()

    def _relatives(self) -> list[NoiseControl]:
        found = [reference() for reference in self._family]
        return [other for other in found if other is not None and other is not self]

    def remove(self, name: str) -> None:
        """Note that the noise, of this name, was taken off its module."""
        keep_for_compiled(self, self._now())
        self.removed = name

    def put(self, then: Held | Instead | None) -> Instead | None:
        """Let what held then hold again, for every read in every thread; what opens meanwhile comes on top.

        Args:
            then: what held, or what this method has returned, to take it back.
        """
        with self._locked():
            keep_for_compiled(self, self._now())
            before = self._instead
            self._instead = Instead(*then, tuple(self.overrides)) if isinstance(then, tuple) else then
            if self._schedule is not None:
                self._schedule.fill_(self._now()[1])
            self._resolve()
            return before

    def _now(self) -> Held:
        """The overrides and the factor of the schedule that hold."""
        instead = self._instead
        if instead is None:
            return self.overrides, self.scheduled
        opened = [override for override in self.overrides if override not in instead.hidden]
        return [*instead.overrides, *opened], instead.scheduled

    def _locked(self) -> AbstractContextManager[Any]:
        """Threads that share a model open and close contexts at any time. Dynamo cannot trace a lock."""
        return nullcontext() if torch.compiler.is_compiling() else self._lock

    def recall(self, more: int) -> None:
        """Count the regions that are being computed again: no read can tell at once then that noise is off."""
        with self._locked():
            self.recomputing += more
            self._resolve()

    def live(self, training: bool) -> bool:
        """Whether the open contexts leave the noise on for a module in this mode."""
        return not self._off and (training or not self._gated)

    def resolved(self, overrides: Sequence[Override], scheduled: float) -> Resolved:
        """Combine these overrides and the factor of a schedule."""
        off, forced, factor, held = False, False, 1.0, None
        for override in overrides:
            off = off or override.off
            forced = forced or override.forced
            factor *= override.scale
            held = override.held or held
        if held is not None:
            factor *= held.sign
        return Resolved(off, self.when == "training" and not forced, held, factor * scheduled)

    def _resolve(self) -> None:
        overrides, scheduled = self._now()
        off, gated, held, factor = self.resolved(overrides, 1.0)
        # Only now, since other threads read them meanwhile.
        self._off, self._gated, self.held = off, gated, held
        self.off, self.gated = off and not self.recomputing, gated and not self.recomputing
        self._by_contexts = factor
        self.factor = factor * scheduled
        self.rest: list[Made] = []  # Last: what a read makes of the old values lands in the old list.

    def __deepcopy__(self, memo: dict[int, Any]) -> NoiseControl:
        copied = NoiseControl(self.when, dict(self.schedules))
        with self._locked():
            if self.overrides:
                self._family[:] = [one for one in self._family if one() is not None] or [weakref.ref(self)]
                self._family.append(weakref.ref(copied))
                copied._family = self._family
                copied.overrides = list(self.overrides)
                copied._resolve()
        return copied

    def __reduce__(self) -> tuple[type[NoiseControl], tuple[When, dict[Hashable, float]]]:
        return NoiseControl, (self.when, dict(self.schedules))
