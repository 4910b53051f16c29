"""Noise that multiplies the weight by a random mask."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from weightnoise._checks import check_choice, check_count, check_strength
from weightnoise._errors import OptionError
from weightnoise.laws._law import Law, straight_through
from weightnoise.laws._options import law_repr
from weightnoise.laws._rates import draw_blocks, rate_problem, spared, spread_blocks
from weightnoise.laws._scale import Gradient


@dataclass(frozen=True)
class DropConnect(Law):
    r"""DropConnect: ``w * m / (1 - p)`` with ``m ~ Bernoulli(1 - p)`` per weight or per block.

    Scaling by a factor f makes the rate ``f p``; the mirrored draw drops where ``u > 1 - p``
    instead of ``u < p`` for the same uniform u.

    Args:
        p: the rate of dropped weights, in [0, 1). 0.5 is usual on recurrent weights.
        rescale: divide what is kept by 1 - p, so that the mean stays.
        block: drop runs of this many neighbouring weights of one output (dimension 0) together.
        gradient: ``"exact"`` gives dropped weights no gradient; ``"straight-through"`` hands the
            gradient at the noisy weight to all of them.

    Raises:
        ValueError: for p outside [0, 1) and a block below 1.

    Example:
        >>> DropConnect(0.5)
        DropConnect(p=0.5)

    Source:
        Wan et al., Regularization of neural networks using DropConnect, 2013; on recurrent
        weights: Merity et al., 2017, arXiv 1708.02182; by blocks: Fan et al., 2020, arXiv 2004.07320.
    """

    p: float
    _: KW_ONLY
    rescale: bool = True
    block: int = 1
    gradient: Gradient = "exact"

    __repr__ = law_repr

    def __post_init__(self) -> None:
        check_strength("DropConnect", "p", self.p)
        if self.p >= 1:
            raise OptionError(f"DropConnect(p=...) must be in [0, 1), got {self.p!r}.")
        check_count("DropConnect", "block", self.block, 1)
        check_choice("DropConnect", "rescale", self.rescale, (True, False))
        check_choice("DropConnect", "gradient", self.gradient, ("exact", "straight-through"))

    def draw(self, weight: Tensor) -> Tensor:
        """Numbers uniform on [0, 1), one for each weight or block."""
        return draw_blocks(weight, self.block, self.p)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        """``weight * mask``, the mask scaled by 1 / (1 - p) when ``rescale`` is set."""
        if problem := self.factor_problem(factor):
            raise OptionError(problem)
        keep = spared(noise, self.p, factor).to(weight.dtype)
        left = 1.0 - self.p * abs(factor)
        short = weight.dtype.itemsize < 4  # There 1 / (1 - p) would be rounded, for all weights alike.
        if self.rescale and not short:
            keep = keep.div_(left)
        noisy = (weight if self.gradient == "exact" else weight.detach()) * spread_blocks(keep, weight, self.block)
        if self.rescale and short:
            noisy = noisy / left
        return noisy if self.gradient == "exact" else straight_through(weight, noisy)

    def apply_part(self, part: Tensor, noise: Tensor, factor: float, over_parts: object) -> Tensor | None:
        """As for `Gaussian`."""
        return self.apply(part, noise, factor) if self.block == 1 else None

    def factor_problem(self, factor: float) -> str | None:
        """Why ``p`` cannot be multiplied by ``factor``, or None: something has to be left."""
        return rate_problem(self, self.p, factor, below_one=True)
