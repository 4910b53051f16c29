"""Noisy weights that stand in the place of the draws that contexts hold, while gradients are off."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from weightnoise._noise.recipe import Stamp, tensors_in
from weightnoise._torch.modes import may_matter
from weightnoise._torch.writing import STEPS
from weightnoise.laws import Law, Noise
from weightnoise.laws._complete import has_user_law

if TYPE_CHECKING:
    from weightnoise._noise.held import HeldDraw
    from weightnoise._noise.weight_noise import WeightNoise


def can_rest(noise: WeightNoise, held: HeldDraw, weight: Tensor) -> bool:
    """Whether a noisy weight of a held draw stays right until something is changed that torch counts."""
    # Inference tensors count no changes; with another estimator the noise goes on the output.
    return (
        noise.rests
        and held.reads is None
        and noise.estimator == "shared"
        and type(weight) is nn.Parameter
        and not (weight.is_inference() or weight.is_complex())  # Nor how often they are conjugated.
        and not noise.is_managed()  # The weights of all forwards are written, uncounted, into one tensor.
    )


class Made:
    """A noisy weight, what it was made from, and how often all that was changed by then.

    Attributes:
        noisy: the noisy weight; None once it was let go, also for those who still know of it.
        of: the clean weight.
        state: the factor, and how many steps optimizers had made.
        stamps: of the weight, and of the tensors that the law has learned or been given.
        alias: of the weight. It keeps the memory, which other numbers could else be put into.
        counts: how often the weight and the noisy weight were changed, and the steps.
        law: kept, so that no other law is at its address.
    """

    __slots__ = ("alias", "counts", "law", "noisy", "of", "stamps", "state")

    def __init__(self, noisy: Tensor, sources: list[Tensor], state: tuple[Any, ...], law: Noise) -> None:
        self.noisy: Tensor | None = noisy
        self.of = sources[0]
        self.state = state
        self.stamps = [Stamp(one) for one in sources]
        self.alias = self.stamps[0].then
        self.counts = (self.stamps[0].version, noisy._version, state[-1])
        self.law = law

    def at_rest(self, weight: Any) -> Tensor | None:
        """The noisy weight, for a read that only the clean weight can have changed since; None where it has."""
        noisy = self.noisy
        if noisy is None or self.of is not weight or self.counts != (weight._version, noisy._version, STEPS[0]):
            return None
        return noisy if weight.is_set_to(self.alias) else None

    def still(self, sources: list[Tensor]) -> Tensor | None:
        """The noisy weight, if nothing has changed that torch counts, in what it was made from and in itself."""
        noisy = self.noisy  # Once: another thread may be about to let it go.
        same = (
            noisy is not None
            and self.of is sources[0]
            and noisy._version == self.counts[1]
            and all(stamp.holds(one) for stamp, one in zip(self.stamps, sources, strict=True))
        )
        return noisy if same else None


def weight_at_rest(owner: nn.Module, made: Made) -> Tensor | None:
    """The noisy weight for a forward that reads it, with gradients off, and does nothing else before or after.

    None where the read has to look for itself. It is asked before the forward, and not within.
    """
    own = owner.__dict__
    return None if "weight" in own or may_matter() else made.at_rest(own["_parameters"].get("weight"))


class First(NamedTuple):
    """What a draw was made for, or is to be made for, so that the same can be made at any time."""

    law: Law
    shape: torch.Size
    dtype: torch.dtype

    def fits(self, weight: Tensor) -> bool:
        """Whether a weight is still such a one."""
        return weight.is_cpu and weight.dtype is self.dtype and weight.shape == self.shape

    def stand_in(self) -> Tensor:
        """A tensor of that kind, without memory."""
        return torch.empty((), dtype=self.dtype, device="cpu").expand(self.shape)


def can_repeat(law: Law, weight: Tensor) -> bool:
    """Whether a draw for a weight is the same numbers whenever it is made from the same seed.

    A law of a user may look at the numbers of the weight, and at whatever else. Compiled code takes a draw as it
    is. On other devices a draw that is made late would be in other streams and captured graphs.
    """
    return (
        not (may_matter() or _compiled)
        and type(weight) is nn.Parameter
        and weight.is_cpu
        and not has_user_law(law)
        and not _smooths(law)
    )


def _smooths(law: Law) -> bool:
    return getattr(law, "smooths", False) or any(map(_smooths, law.inside))


WAITING: weakref.WeakSet[HeldDraw] = weakref.WeakSet()  # Those that may have no draw at present.
_compiled = False


def reads_are_compiled() -> bool:
    """Whether any read was compiled: its code takes the draws that are held as they are."""
    return _compiled


def bring_back() -> None:
    """Make all draws that are held, and let go of none from now on."""
    global _compiled
    _compiled = True
    for held in list(WAITING):
        if held.first is not None:
            held.make(held.first.law, held.first.stand_in())


def size_of(draw: Any) -> int:
    """How many bytes the tensors in a draw take."""
    return sum(one.nbytes for one in tensors_in(draw))


def is_nothing(draw: Any) -> bool:
    """Whether no random number is in a draw."""
    return draw is None or (isinstance(draw, tuple) and all(map(is_nothing, draw)))
