"""The forms of a draw, the random part of a noisy weight: the one file that tells them apart.

- What ``law.draw`` has returned: numbers, or whatever the law takes for them.
- A `Key`, of which the numbers of a large weight are a function: they are made while they are added.
- A `Seed`, from which the law draws the same again whenever it has to: ``memory="recompute"``.
- `PER_EXAMPLE`: none, as the reads are clean and the noise goes on the output of the layer.

A draw is fresh, or that of a chip (`PENDING` until its weight has numbers), or held by a context (`HeldDraw`).
With gradients off a held draw is made into a noisy weight once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from weightnoise._errors import WeightNoiseError
from weightnoise._random import draws as _random
from weightnoise._random import philox as _engine
from weightnoise._torch.autograd import CleanRow
from weightnoise._torch.modes import runs_eagerly
from weightnoise._torch.writing import optimizer_steps
from weightnoise.laws import Law, Noise
from weightnoise.laws._law import apply_law

if TYPE_CHECKING:
    from weightnoise._noise.weight_noise import WeightNoise

PER_EXAMPLE = "per example"
PENDING = "pending"


class Key(tuple[Any]):
    """One number of 64 bits; on a GPU a tensor there, which a CUDA graph draws anew at every replay.

    A tuple, since Python makes one without calling a function of ours.
    """

    __slots__ = ()


class Seed(int):
    """63 bits for torch's generator."""


def moved(draw: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """A frozen draw on the device to which ``fn`` moves tensors; its dtype and its numbers stay."""
    if isinstance(draw, tuple):
        return tuple(moved(part, fn) for part in draw)
    return draw.to(fn(draw.new_empty(0)).device) if isinstance(draw, Tensor) else draw


def is_pending(chip_draw: Any) -> bool:
    """Whether the draw of a chip waits for a weight that has numbers."""
    return isinstance(chip_draw, str)


def is_key(draw: Any) -> bool:
    """Whether the numbers are made while they are added, so that a graph keeps nothing of them."""
    return type(draw) is Key


def bare(draw: Any) -> Any:
    """The number of a key; any other draw as it is."""
    return draw[0] if type(draw) is Key else draw


def apply_draw(noise: WeightNoise, weight: Tensor, draw: Any, factor: float) -> Tensor:
    """The noisy weight that the law makes of a draw, with the padding row of an embedding left clean."""
    clean, exact = weight, noise.padding_row is not None and noise.handed.gradient != "straight-through"
    if exact:  # No gradient by way of statistics of the weight: the row is a constant of the law.
        weight = CleanRow.apply(weight, weight.detach(), noise.padding_row, True)  # type: ignore[no-untyped-call]
    if type(draw) is Key:
        noisy: Tensor = noise.handed.apply_key(weight, draw[0], factor)
    else:
        if type(draw) is Seed:
            draw = noise.seeded_draw(weight, draw)
        if noise.strength_names:
            noisy = apply_law(noise.handed, weight, draw, factor, noise.strengths())
        else:
            noisy = noise.handed.apply(weight, draw, factor)
    if noise.padding_row is not None:
        own = clean if exact else clean.detach()
        noisy = CleanRow.apply(noisy, own, noise.padding_row, exact)  # type: ignore[no-untyped-call]
    if noise.attributes and not runs_eagerly():  # Else the read hands them on.
        carry(noise.attributes, clean, noisy)
    return noisy


def add_draw(noise: WeightNoise, weight: Tensor, seed: int, sign: int, amount: float, die: int) -> None:
    """Add ``amount * (noisy - weight)`` to a weight in place, for the draw that is held under a seed.

    Within a ``torch.no_grad()``. The strength is that of now, whatever draw is held.
    """
    factor = abs(noise.control.factor) * sign
    if noise.takes_keys and weight.is_cpu and _engine.can_fuse(weight) and not weight.is_inference():
        with _random.seeded(seed, weight.device):
            key = int(_random.key())
        rows = weight[:0] if noise.padding_row is None else weight[noise.padding_row :][:1]
        clean = rows.clone()
        noise.handed.apply_key(weight, key, factor * amount, out=weight)
        increment_version(weight)  # What C has written, autograd has not seen.
        rows.copy_(clean)
        return
    held = HeldDraw(seed, sign, die=die if noise.handed.says("draw_of") else None)
    draw = held.draw(noise.handed, weight)
    if noise.handed.deviation(weight, noise.strengths()) is not None:  # Linear: rounded once.
        weight.copy_(apply_draw(noise, weight, draw, factor * amount))
    else:
        weight.add_(apply_draw(noise, weight, draw, factor) - weight, alpha=amount)


def carry(names: Iterable[str], weight: Tensor, noisy: Tensor) -> None:
    """Give a noisy weight the attributes that code has hung on the Parameter."""
    for name in names if type(noisy) is Tensor else ():
        if noisy is not weight and hasattr(weight, name):
            setattr(noisy, name, getattr(weight, name))


def drawing_alone() -> AbstractContextManager[Any]:
    """One thread at a time makes a draw that is kept. Dynamo cannot trace a lock."""
    # The one that seeded draws wait for: with another one, two threads could each have what the other waits for.
    return nullcontext() if torch.compiler.is_compiling() else _random._SEEDING


def can_rest(noise: WeightNoise, held: HeldDraw, weight: Tensor) -> bool:
    """Whether a noisy weight of a held draw stays right until something is changed that torch counts."""
    # Inference tensors count no changes; with another estimator the noise goes on the output.
    return (
        noise.rests
        and held.reads is None
        and noise.estimator == "shared"
        and type(weight) is torch.nn.Parameter
        and not weight.is_inference()
    )


class Made(NamedTuple):
    """A noisy weight, its count of in-place changes, and what it was made from: weight, state then, and law."""

    noisy: Tensor
    version: int
    of: Tensor
    state: tuple[Any, ...]
    law: Noise  # Kept, so that no other law is at its address.


@dataclass(eq=False)
class HeldDraw:
    """One parameter's draw for the length of a `hold_noise`; tied uses share the object.

    Attributes:
        seed: what it is drawn from; None for torch's generator.
        sign: -1 for the mirrored draw.
        noise: the draw, once it is there.
        drawn: whether it is.
        shape: of what it was drawn for, which may be replaced by another.
        key: of what differs from example to example.
        made: the noisy weights that were made of it with gradients off.
        die: the seed of what laws have in common with those of other parameters; None where they have nothing.
        turns: how often each row of a batch has got other numbers by the key; None for never.
        reads: how often it was read, where a reading draws anew what does not belong to the chip; else None.
    """

    seed: int | None
    sign: int
    noise: Any = None
    drawn: bool = False
    shape: torch.Size | None = None
    key: Tensor | None = None
    made: dict[tuple[int, int | None], Made] = field(default_factory=dict)
    die: int | None = None
    turns: Tensor | None = None
    reads: int | None = None

    def make_key(self) -> None:
        """Make what the noise of the examples is a function of."""
        with drawing_alone():
            if self.key is None:
                own = None if self.seed is None else _random.derive_seed(self.seed, "examples")
                self.key = _random.key() if own is None else torch.tensor(own, dtype=torch.int64, device="cpu")

    def turned(self, rows: Tensor) -> HeldDraw:
        """The same draw, with other numbers for some rows of a batch."""
        before = torch.zeros(0, dtype=torch.int64, device="cpu") if self.turns is None else self.turns
        after = torch.bincount(rows, minlength=before.numel()).clamp(max=1)
        after[: before.numel()] += before
        return replace(self, turns=after, made={})

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

        For reads with gradients off; the draw stays. Conversions and swap_tensors put new numbers into one object.
        """
        place = id(noise.handed), noise.padding_row
        made = self.made.get(place)
        others = (*noise.law_tensors, *noise.strengths().values()) if noise.strength_names else noise.law_tensors
        counts = tuple([tensor._version for tensor in others]) if others else None
        state = (weight._version, weight.data_ptr(), factor, optimizer_steps(), counts)
        if made is None or made.of is not weight or made.state != state or made.noisy._version != made.version:
            with drawing_alone(), torch.inference_mode(False), torch.no_grad():
                noisy = apply_draw(noise, weight, self.draw(noise.handed, weight), factor)
                made = self.made[place] = Made(noisy, noisy._version, weight, state, noise.handed)
        return made.noisy

    def _draw(self, law: Law, weight: Tensor) -> None:
        if self.reads is None or law.has_chip_part:
            with _apart(self.seed, weight):
                noise = law.draw(weight) if self.die is None else law.draw_of(weight, self.die)
            self.noise, self.shape = noise, weight.shape
        self.drawn = True  # Last: other threads look at it without the lock, and a draw may fail.

    def _reading(self, law: Law, weight: Tensor) -> Any:
        """What is held of the draw, read again. Compiled code takes its numbers from torch's generator."""
        if torch.compiler.is_compiling():
            return law.reread(weight, self.noise)
        with drawing_alone():
            number = self.reads
            self.reads = (number or 0) + 1
        seed = _random.derive_seed(self.seed or 0, f"read {number}")
        if law.takes_keys and _engine.can_fuse(weight):
            return Key((seed,))
        with _apart(seed, weight):
            return law.reread(weight, self.noise)


@contextmanager
def _apart(seed: int | None, weight: Tensor) -> Iterator[None]:
    """Drawing from a seed, or from torch's generator, without a gradient."""
    own = nullcontext() if seed is None else _random.seeded(seed, weight.device)
    # A tensor that is made in inference mode could not be used with gradients later on.
    inference = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
    normal = torch.inference_mode(False) if inference else nullcontext()
    with normal, own, torch.no_grad():
        yield
