"""The draw that a context holds, and how it moves on in time.

With gradients off it is made into a noisy weight once. A draw is never changed: what comes a step later is another
one, so that a recomputation finds the one that its forward has seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from weightnoise._errors import WeightNoiseError
from weightnoise._noise.draws import Key, apply_draw, drawing_alone
from weightnoise._noise.paths import Step, parted, total
from weightnoise._noise.recipe import Stamp
from weightnoise._random import philox as _engine
from weightnoise._random import seeds as _seeds
from weightnoise._random.common import Common, drawn_with, of_seed
from weightnoise._torch.writing import optimizer_steps
from weightnoise.laws import Law, Noise

if TYPE_CHECKING:
    from weightnoise._noise.weight_noise import WeightNoise


def add_draw(noise: WeightNoise, weight: Tensor, held: HeldDraw, amount: float) -> None:
    """Add ``amount * (noisy - weight)`` to a weight in place, for a draw that is held under a seed.

    Within a ``torch.no_grad()``. The strength is that of now, whatever draw is held.
    """
    factor = abs(noise.control.factor) * held.sign
    if noise.takes_keys and weight.is_cpu and _engine.can_fuse(weight) and not weight.is_inference():
        with _seeds.seeded(held.seed or 0, weight.device):
            key = int(_seeds.key())
        rows = weight[:0] if noise.padding_row is None else weight[noise.padding_row :][:1]
        clean = rows.clone()
        noise.handed.apply_key(weight, key, factor * amount, out=weight)
        increment_version(weight)  # What C has written, autograd has not seen.
        rows.copy_(clean)
        return
    draw = held.draw(noise.handed, weight)
    if noise.handed.deviation(weight, noise.strengths()) is not None:  # Linear: rounded once.
        weight.copy_(apply_draw(noise, weight, draw, factor * amount))
    else:
        weight.add_(apply_draw(noise, weight, draw, factor) - weight, alpha=amount)


def can_rest(noise: WeightNoise, held: HeldDraw, weight: Tensor) -> bool:
    """Whether a noisy weight of a held draw stays right until something is changed that torch counts."""
    # Inference tensors count no changes; with another estimator the noise goes on the output.
    return (
        noise.rests
        and held.reads is None
        and noise.estimator == "shared"
        and type(weight) is torch.nn.Parameter
        and not (weight.is_inference() or weight.is_complex())  # Nor how often they are conjugated.
        and not noise.is_managed()  # The weights of all forwards are written, uncounted, into one tensor.
    )


class Made(NamedTuple):
    """A noisy weight, its count of in-place changes, and what it was made from: weight, state then, and law."""

    noisy: Tensor
    version: int
    of: Tensor
    state: tuple[Any, ...]
    stamps: list[Stamp]  # Of the weight, and of the tensors that the law has learned or been given.
    law: Noise  # Kept, so that no other law is at its address.

    def holds(self, sources: list[Tensor]) -> bool:
        """Whether nothing has changed since that torch counts, in what it was made from and in itself."""
        return (
            self.of is sources[0]
            and self.noisy._version == self.version
            and all(stamp.holds(one) for stamp, one in zip(self.stamps, sources, strict=True))
        )


@dataclass(eq=False)
class HeldDraw:
    """One parameter's draw for the length of a `hold_noise`; tied uses share the object.

    Attributes:
        seed: what it is drawn from; None for torch's generator.
        sign: -1 for the mirrored draw.
        noise: the draw, once it is there.
        drawn: whether it is.
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
    noise: Any = None
    drawn: bool = False
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
        return replace(self, turns=after, made={})

    def later(self, steps: int) -> HeldDraw:
        """The draw of the same chip some steps of time later; it is made when it is asked for."""
        seed = int(_seeds.key()) if self.seed is None else self.seed
        new = replace(self, seed=seed, past=(self, steps), step=self.step + 1, noise=None, drawn=False, made={})
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
        self.make(law, weight)
        if self.shape is not None and self.shape != weight.shape:
            raise WeightNoiseError(
                f"hold_noise holds one draw of shape {tuple(self.shape)} for a parameter that now has the shape "
                f"{tuple(weight.shape)}. Change its shape outside of the hold, or call reset() on it."
            )
        return self.noise if self.reads is None else self._reading(law, weight)

    def make(self, law: Law, weight: Tensor) -> None:
        """Make the draw, where that is still to be done, for a weight that has numbers."""
        if not self.drawn and not weight.is_meta:
            with drawing_alone():
                if not self.drawn:
                    self._draw(law, weight)

    def noisy_weight(self, noise: WeightNoise, weight: Tensor, factor: float) -> Tensor:
        """Return the noisy weight of the draw, made again only when something that it is made from has changed.

        For reads with gradients off; the draw stays. Conversions, swap_tensors, functional_call and assigned
        checkpoints put other numbers in place of the weight or of what is learned, often at the same address.
        """
        place = id(noise.handed), noise.padding_row
        made = self.made.get(place)
        learned = noise.strengths().values() if noise.strength_names else ()
        sources = [weight, *learned, *noise.law_tensors]
        state = factor, optimizer_steps()
        if made is None or made.state != state or not made.holds(sources):
            with drawing_alone(), torch.inference_mode(False), torch.no_grad():
                noisy = apply_draw(noise, weight, self.draw(noise.handed, weight), factor)
                if any(one.is_inference() for one in sources):  # They count no changes.
                    return noisy
                stamps = [Stamp(one) for one in sources]
                made = self.made[place] = Made(noisy, noisy._version, weight, state, stamps, noise.handed)
        return made.noisy

    def _common(self) -> Common:
        layer = None if self.layer is None else of_seed(_seeds.derive_seed(self.layer, f"layer{self._now}"))
        return Common(self.die, layer)

    def _draw(self, law: Law, weight: Tensor) -> None:
        if self.past is not None:
            self._move_on(law, weight, *self.past)
            self.past = None
        elif self.reads is None or law.has_chip_part:
            with _apart(self.seed, weight):
                self.noise = drawn_with(self._common(), law.draw, weight)
                self.states = parted(law, weight, self.noise, len(self.rho))
            self.shape = None if _is_nothing(self.noise) else weight.shape
        self.drawn = True  # Last: other threads look at it without the lock, and a draw may fail.

    def _move_on(self, law: Law, weight: Tensor, before: HeldDraw, steps: int) -> None:
        before.make(law, weight)
        with _apart(_seeds.derive_seed(self.seed or 0, f"step {self.step}"), weight):
            if not self.rho:
                self.noise = drawn_with(self._common(), law.reread, weight, before.noise)
                return
            self.states = tuple(
                law.moved_on(state, [law.reread(weight, state)], Step(rho, steps))
                for rho, state in zip(self.rho, before.states, strict=True)
            )
            self.noise = law.moved_on(before.noise, self.states, total)

    def _reading(self, law: Law, weight: Tensor) -> Any:
        """What is held of the draw, read again. Compiled code takes its numbers from torch's generator."""
        if torch.compiler.is_compiling():
            return law.reread(weight, self.noise)
        with drawing_alone():
            number = self.reads
            self.reads = (number or 0) + 1
        seed = _seeds.derive_seed(self.seed or 0, f"read {number}")
        if law.takes_keys and _engine.can_fuse(weight):
            return Key((seed,))
        with _apart(seed, weight):
            return law.reread(weight, self.noise)


@contextmanager
def _apart(seed: int | None, weight: Tensor) -> Iterator[None]:
    """Drawing from a seed, or from torch's generator, without a gradient."""
    own = nullcontext() if seed is None else _seeds.seeded(seed, weight.device)
    # A tensor that is made in inference mode could not be used with gradients later on.
    inference = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
    normal = torch.inference_mode(False) if inference else nullcontext()
    with normal, own, torch.no_grad():
        yield


def _is_nothing(draw: Any) -> bool:
    """Whether no random number is in a draw."""
    return draw is None or (isinstance(draw, tuple) and all(map(_is_nothing, draw)))
