"""Noise that multiplies the weight by a random mask."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from weightnoise import _random
from weightnoise._scale import Gradient, check_choice, check_strength
from weightnoise.laws._protocol import law_repr, straight_through


@dataclass(frozen=True)
class DropConnect:
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
            raise ValueError(f"DropConnect(p=...) must be in [0, 1), got {self.p!r}.")
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < 1:
            raise ValueError(f"DropConnect(block=...) must be a whole number >= 1, got {self.block!r}.")
        check_choice("DropConnect", "rescale", self.rescale, (True, False))
        check_choice("DropConnect", "gradient", self.gradient, ("exact", "straight-through"))

    def draw(self, weight: Tensor) -> Tensor:
        """Numbers uniform on [0, 1), one for each weight or block."""
        if self.block == 1 or weight.ndim == 0:
            return _random.unit_uniform(weight, weight.shape)
        rows, columns = _matrix_shape(weight)
        return _random.unit_uniform(weight, (rows, -(-columns // self.block)))

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        """``weight * mask``, the mask scaled by 1 / (1 - p) when ``rescale`` is set."""
        p = self.p * abs(factor)
        if p >= 1:
            raise ValueError(f"{self!r} scaled by {abs(factor)} would drop with p={p}; p must stay below 1.")
        keep = noise >= p if factor >= 0 else noise <= 1.0 - p
        if self.block > 1 and weight.ndim > 0:
            columns = _matrix_shape(weight)[1]
            keep = keep.repeat_interleave(self.block, dim=1)[:, :columns].reshape(weight.shape)
        mask = keep.to(weight.dtype)
        if self.rescale:
            mask = mask / (1.0 - p)
        if self.gradient == "exact":
            return weight * mask
        return straight_through(weight, weight.detach() * mask)


def _matrix_shape(weight: Tensor) -> tuple[int, int]:
    rows = weight.shape[0]
    return rows, weight.numel() // rows if rows else 0
