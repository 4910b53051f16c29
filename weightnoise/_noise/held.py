"""The draw that a context holds, and how it moves on in time.

With gradients off it is made into a noisy weight once, which then stands in its place: a hold keeps one of the two
wherever the other can be made again. A draw is never changed: what comes a step later is another one, so that a
recomputation finds the one that its forward has seen.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightnoise._errors import WeightNoiseError
from weightnoise._noise.checkpoints import fresh_in_regions
from weightnoise._noise.draws import Key, apply_draw, drawing_alone, drawing_apart
from weightnoise._noise.paths import Step, parted, total
from weightnoise._noise.resting import WAITING, First, Made, can_repeat, is_nothing, reads_are_compiled, size_of
from weightnoise._random import philox as _engine
from weightnoise._random import seeds as _seeds
from weightnoise._random.common import Common, drawn_with, of_seed
from weightnoise._torch.modes import by_itself
from weightnoise._torch.writing import optimizer_steps
from weightnoise.laws import Law

if TYPE_CHECKING:
    from weightnoise._noise.weight_noise import WeightNoise


@dataclass(eq=False)
class HeldDraw:
    """One parameter's draw for the length of a `hold_noise`; tied uses share the object.

    Attributes:
        seed: what it is drawn from; None for torch's generator.
        sign: -1 for the mirrored draw.
        kept: the draw, in a tuple; empty before it is made, and while noisy weights stand in its place.
        first: what it was made for, or is to be, if the same can be made again; None for a draw that stays.
        origin: the states of torch's generators that it is made from again, where there is no seed.
        shape: of what it was drawn for, which may be replaced by another; None where no number was drawn.
        key: of what differs from example to example.
        made: the noisy weights that were made of it with gradients off.
        die: the seed of what a group of parameters has in common; None where no law has.
        layer: the seed of what the parameters of its layer have in common; None where they have nothing.
        turns: how often each row of a batch has got other numbers by the key; None for never.
        reads: how often it was read, where a reading draws anew what does not belong to the chip; else None.
        rho: the autocorrelations, after one step, of the processes that it is the sum of; () for none.
        states: the draws of these processes.
        past: the draw that this one comes after, until that is used, and how many steps later it is.
        step: how often it has moved on.
    """

    seed: int | None
    sign: int
    kept: tuple[Any, ...] = ()
    first: First | None = None
    origin: Tensor | None = None
    shape: torch.Size | None = None
    key: Tensor | None = None
    made: dict[tuple[int, int | None], Made] = field(default_factory=dict)
    die: int | None = None
    layer: int | None = None
    turns: Tensor | None = None
    reads: int | None = None
    rho: tuple[float, ...] = ()
    states: tuple[Any, ...] = ()
    past: tuple[HeldDraw, int] | None = None
    step: int = 0

    def make_key(self) -> None:
        """Make what the noise of the examples is a function of."""
        with drawing_alone():
            if self.key is None:
                own = None if self.seed is None else _seeds.derive_seed(self.seed, f"examples{self._now}")
                self.key = _seeds.key() if own is None else torch.tensor(own, dtype=torch.int64, device="cpu")

    def turned(self, rows: Tensor) -> HeldDraw:
        """The same draw, with other numbers for some rows of a batch."""
        before = torch.zeros(0, dtype=torch.int64, device="cpu") if self.turns is None else self.turns
        after = torch.bincount(rows, minlength=before.numel()).clamp(max=1)
        after[: before.numel()] += before
        return replace(self, turns=after, made={})._repeating(self.first)

    def later(self, steps: int) -> HeldDraw:
        """The draw of the same chip some steps of time later; it is made when it is asked for."""
        seed = fresh_in_regions("steps", lambda: int(_seeds.key())) if self.seed is None else self.seed
        there: dict[str, Any] = {"kept": (), "first": None, "origin": None, "made": {}}
        new = replace(self, seed=seed, past=(self, steps), step=self.step + 1, **there)
        if self.key is not None:
            new.key = None
            new.make_key()
        return new

    @property
    def _now(self) -> str:
        return f" of step {self.step}" if self.step else ""

    def draw(self, law: Law, weight: Tensor) -> Any:
        """The held draw, or a reading of it; made when it is first asked for by a weight that has numbers."""
        if weight.is_meta:
            return law.draw(weight)
        drawn = self._fitting(weight, self.make(law, weight))
        return drawn if self.reads is None else self._reading(law, weight, drawn)

    def make(self, law: Law, weight: Tensor) -> Any:
        """The draw, made where that is still to be done for a weight that has numbers; noisy weights go for it."""
        kept = self.kept  # Once: another thread may be about to put a noisy weight in its place.
        if not kept and not weight.is_meta:
            with drawing_alone():
                kept = self.kept
                if not kept:
                    kept = (self._drawn(law, weight),)
                    if self.first is not None:
                        self._let_go(*self.made)
                    self.kept = kept  # Last: other threads look at it without the lock, and a draw may fail.
        return kept[0] if kept else None

    def wait(self, law: Law, weight: Tensor) -> bool:
        """Whether the draw need not be made before it is asked for, since it is the same at any time."""
        if self.kept or self.first is not None:
            return True
        late = self.past is not None and law.has_chip_part
        if self.seed is None or self.reads is not None or self.rho or late or not can_repeat(law, weight):
            return False
        self.past = None  # What belongs to no chip is drawn anew at each step.
        self._repeating(First(law, weight.shape, weight.dtype))
        return True

    def noisy_weight(self, noise: WeightNoise, weight: Tensor, factor: float) -> tuple[Tensor, Made | None]:
        """Return the noisy weight of the draw, made again only when something that it is made from has changed.

        For reads with gradients off. Conversions, swap_tensors, functional_call and assigned checkpoints put other
        numbers in place of the weight or of what is learned, often at the same address.
        """
        place = id(noise.handed), noise.padding_row
        made = self.made.get(place)
        learned = noise.strengths().values() if noise.strength_names else ()
        sources = [weight, *learned, *noise.law_tensors]
        state = factor, optimizer_steps()
        noisy = None if made is None or made.state != state else made.still(sources)
        if noisy is not None:
            return noisy, made
        with drawing_alone(), torch.inference_mode(False), torch.no_grad():
            self._let_go(place)  # First, so that there is one at a time.
            if any(one.is_inference() for one in sources):  # They count no changes.
                return apply_draw(noise, weight, self.draw(noise.handed, weight), factor), None
            noisy = apply_draw(noise, weight, *self._used_up(noise, weight, factor))
            made = self.made[place] = Made(noisy, sources, state, noise.handed)
        return noisy, made

    def _common(self) -> Common:
        layer = None if self.layer is None else of_seed(_seeds.derive_seed(self.layer, f"layer{self._now}"))
        return Common(self.die, layer)

    def _used_up(self, noise: WeightNoise, weight: Tensor, factor: float) -> tuple[Any, float, bool]:
        """The draw and the factor, and whether nobody else has the draw.

        It is kept no longer where the noisy weight that is made of it can stand in its place.
        """
        first, kept = self.first, self.kept
        if first is None or reads_are_compiled():
            return self.draw(noise.handed, weight), factor, False
        drawn = self._fitting(weight, kept[0] if kept else self._drawn(first.law, weight))
        self.kept = (drawn,) if is_nothing(drawn) else ()
        return drawn, factor, not kept and first.law is noise.handed

    def _repeating(self, first: First | None) -> HeldDraw:
        """This draw, which can be made again."""
        if first is not None:
            self.first = first
            WAITING.add(self)
        return self

    def _let_go(self, *places: tuple[int, int | None]) -> None:
        """Let go of noisy weights."""
        for place in places:
            made = self.made.pop(place, None)
            if made is not None:
                made.noisy = None

    def _fitting(self, weight: Tensor, drawn: Any) -> Any:
        """What was drawn; an error where the weight has another shape by now."""
        if self.shape is not None and self.shape != weight.shape:
            raise WeightNoiseError(
                f"hold_noise holds one draw of shape {tuple(self.shape)} for a parameter that now has the shape "
                f"{tuple(weight.shape)}. Change its shape outside of the hold, or call reset() on it."
            )
        return drawn

    def _drawn(self, law: Law, weight: Tensor) -> Any:
        """The draw; the same each time where it can be made again."""
        if self.first is not None:
            first = self.first
            with by_itself():
                return self._of_numbers(first.law, weight if first.fits(weight) else first.stand_in())
        if self.past is not None:
            drawn = self._moved_on(law, weight, *self.past)
            self.past = None
            return drawn
        if self.reads is not None and not law.has_chip_part:
            return None
        repeats = self.seed is None and self.reads is None and not self.rho and can_repeat(law, weight)
        origin = _seeds.states(weight.device) if repeats else None
        drawn = self._of_numbers(law, weight)
        if origin is not None and size_of(drawn) > origin.nbytes:  # Else it takes less memory itself.
            self._repeating(First(law, weight.shape, weight.dtype)).origin = origin
        return drawn

    def _of_numbers(self, law: Law, weight: Tensor) -> Any:
        with self._numbers(weight):
            if self.step:
                drawn = drawn_with(self._common(), law.reread, weight, None)
            else:
                drawn = drawn_with(self._common(), law.draw, weight)
                self.states = parted(law, weight, drawn, len(self.rho))
        self.shape = None if is_nothing(drawn) else weight.shape
        return drawn

    def _moved_on(self, law: Law, weight: Tensor, before: HeldDraw, steps: int) -> Any:
        drawn = before.make(law, weight)
        with self._numbers(weight):
            if not self.rho:
                return drawn_with(self._common(), law.reread, weight, drawn)
            self.states = tuple(
                law.moved_on(state, [law.reread(weight, state)], Step(rho, steps))
                for rho, state in zip(self.rho, before.states, strict=True)
            )
            return law.moved_on(drawn, self.states, total)

    def _reading(self, law: Law, weight: Tensor, drawn: Any) -> Any:
        """What is held of the draw, read again. Compiled code takes its numbers from torch's generator."""
        if torch.compiler.is_compiling():
            return law.reread(weight, drawn)
        with drawing_alone():
            number = self.reads
            self.reads = (number or 0) + 1
        seed = _seeds.derive_seed(self.seed or 0, f"read {number}")
        if law.takes_keys and _engine.can_fuse(weight):
            return Key((seed,))
        with drawing_apart(_seeds.seeded(seed, weight.device)):
            return law.reread(weight, drawn)

    def _numbers(self, weight: Tensor) -> AbstractContextManager[None]:
        """Drawing from the seed, or from torch's generator, without a gradient."""
        if self.origin is not None:
            return drawing_apart(_seeds.in_states(self.origin, weight.device))
        if self.seed is None and not self.step:
            return drawing_apart(nullcontext())
        seed = self.seed or 0
        own = _seeds.derive_seed(seed, f"step {self.step}") if self.step else seed
        return drawing_apart(_seeds.seeded(own, weight.device))
