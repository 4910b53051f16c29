"""Any function of the weight as a law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from weightnoise._checks import check_choice
from weightnoise._errors import OptionError
from weightnoise._random import seeds as _seeds
from weightnoise.laws._law import Law, straight_through
from weightnoise.laws._options import law_repr
from weightnoise.laws._scale import Gradient


@dataclass(frozen=True)
class Custom(Law):
    r"""Any transformation of the weight: ``fn(w)``, of the same shape and dtype.

    The function runs with torch's generators seeded by the draw, so that a held draw, a second
    read in one forward and a recomputed forward see the same numbers, whatever it draws from
    torch. Scaling by a factor f gives ``w + f (fn(w) - w)``; the mirrored draw is f = -1.

    Args:
        fn: a function of the weight alone.
        gradient: ``"exact"`` differentiates through ``fn``; ``"straight-through"`` hands the
            gradient at ``fn(w)`` to the clean weight unchanged, as for rounding.

    Raises:
        ValueError: if ``fn`` is not callable, or returns another shape or dtype.

    Example:
        >>> law = Custom(lambda w: (w * 8).round() / 8, gradient="straight-through")
        >>> law.apply(torch.tensor([0.3]), law.draw(torch.zeros(1)), 1.0)
        tensor([0.2500])

    Source:
        Straight-through: Bengio et al., Estimating or propagating gradients through stochastic
        neurons for conditional computation, 2013, arXiv 1308.3432.
    """

    fn: Callable[[Tensor], Tensor]
    _: KW_ONLY
    gradient: Gradient = "exact"

    __repr__ = law_repr

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise OptionError(f"Custom(fn) must be a function of the weight, got {self.fn!r}.")
        check_choice("Custom", "gradient", self.gradient, ("exact", "straight-through"))

    def draw(self, weight: Tensor) -> Tensor:
        """The key that the function's random numbers are seeded with."""
        return _seeds.key()

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        """``weight + factor * (fn(weight) - weight)``."""
        with _seeds.seeded(int(noise), weight.device):
            changed = self.fn(weight)
        if not isinstance(changed, Tensor) or (changed.shape, changed.dtype) != (weight.shape, weight.dtype):
            got = (tuple(changed.shape), changed.dtype) if isinstance(changed, Tensor) else type(changed)
            raise OptionError(
                f"{self!r} must return a tensor like the weight, {(tuple(weight.shape), weight.dtype)}, got {got}."
            )
        if isinstance(factor, Tensor) or factor != 1.0:
            changed = weight + factor * (changed - weight)
        return changed if self.gradient == "exact" else straight_through(weight, changed.detach())
