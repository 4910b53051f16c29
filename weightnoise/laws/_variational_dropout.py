"""Multiplicative noise whose strength is learned under a sparse prior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor

from weightnoise._checks import check_choice, check_per, check_strength
from weightnoise._errors import OptionError
from weightnoise._random import passes as _passes
from weightnoise.laws._law import straight_through
from weightnoise.laws._learned import LearnedDeviation, filled_per
from weightnoise.laws._options import law_repr
from weightnoise.laws._pieces import LARGE
from weightnoise.laws._regions import Per
from weightnoise.laws._scale import wide

_FAR = 0.6351814227  # (Euler's constant + ln 2) / 2: the divergence then goes to 0 as alpha grows.
_CUBIC = (1.16145124, -1.50204118, 0.58629921)
_SIGMOID = (0.63576, 1.87320, 1.48695)


@dataclass(frozen=True)
class VariationalDropout(LearnedDeviation):
    r"""Multiplicative Gaussian noise of a learned strength: ``w (1 + sqrt(alpha) e)``, e standard normal.

    Gaussian dropout whose rate is learned: ``alpha = p / (1 - p)``. The Parameter ``log_alpha`` has one
    element, one per channel (``per=0``: per output unit), or one per weight. Add `kl_divergence` of the
    model, over the number of training examples, to the mean loss; without it the loss drives alpha to 0.
    The gradient is exact in w and in alpha. A factor multiplies ``sqrt(alpha)`` and leaves the divergence.

    The divergence from the log-uniform prior ``p(log |w|) = const`` depends on alpha alone. Its constant
    is chosen such that it goes to 0 as alpha grows. Of each weight it is, with sigma the logistic function::

        "molchanov"  0.63576 (1 - sigma(1.87320 + 1.48695 ln alpha)) + ln(1 + 1 / alpha) / 2
        "kingma"     0.63518 - (ln alpha) / 2 - 1.16145124 alpha + 1.50204118 alpha^2 - 0.58629921 alpha^3

    The first is within 0.01 of the integral for every alpha. The second is within 0.04 below alpha = 1 and
    wrong above, so alpha is held at 1 there, in the noise as in the divergence; the gradient of the noise
    passes, and can bring it back.

    Args:
        init: the first value of alpha; 0.25 is a dropout rate of 0.2.
        per: what has an alpha of its own: ``"element"``, ``"tensor"``, ``"output"`` or ``"input"`` for each output
            or input of the layer, or the dimension of the channels.
        approximation: of the divergence, ``"molchanov"`` or ``"kingma"``.

    Raises:
        ValueError: for an initial value that is not positive, or above 1 with ``"kingma"``.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), VariationalDropout(per=0), estimator="local")
        >>> learned_strengths(model)["parametrizations.weight.0.log_alpha"].shape
        torch.Size([2, 1])

    Source:
        Kingma, Salimans and Welling, Variational dropout and the local reparameterization trick, 2015,
        arXiv 1506.02557; Molchanov, Ashukha and Vetrov, Variational dropout sparsifies deep neural
        networks, 2017, arXiv 1701.05369.
    """

    init: float = 0.25
    _: KW_ONLY
    per: Per | Literal["element"] = "element"
    approximation: Literal["molchanov", "kingma"] = "molchanov"

    __repr__ = law_repr

    def __post_init__(self) -> None:
        check_strength("VariationalDropout", "init", self.init)
        if self.per != "element":
            check_per("VariationalDropout", self.per)
        check_choice("VariationalDropout", "approximation", self.approximation, ("molchanov", "kingma"))
        if self.init == 0 or (self.init > 1 and self.approximation == "kingma"):
            limit = "in (0, 1] with approximation='kingma'" if self.init else "positive"
            raise OptionError(f"VariationalDropout(init=...) must be {limit}, got {self.init!r}.")

    def strengths(self, weight: Tensor) -> dict[str, Tensor]:
        """``log_alpha``, shaped to broadcast against the weight."""
        return {"log_alpha": filled_per(weight, self.regions, math.log(self.init))}

    def apply(
        self, weight: Tensor, noise: Tensor, factor: float, strengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """``weight + factor * sqrt(alpha) * weight * noise``."""
        log_alpha = (strengths or self.strengths(weight))["log_alpha"]
        if weight.numel() < LARGE or not _passes.can_apply(factor, weight, noise, log_alpha):
            return super().apply(weight, noise, factor, {"log_alpha": log_alpha})

        def gradients(grad: Tensor, weight: Tensor, noise: Tensor, log_alpha: Tensor) -> tuple[Tensor, Tensor]:
            moved = grad * noise * self._root(log_alpha) * factor
            return grad + moved, moved * weight * 0.5

        def make() -> Tensor:
            return _passes.apply(_passes.ROOT, (factor, self._highest), weight, noise, log_alpha)

        return _passes.with_gradients(make, gradients, (weight, noise, log_alpha), weight, log_alpha)

    def deviation(self, weight: Tensor, strengths: Mapping[str, Tensor] | None = None) -> Tensor:
        """``sqrt(alpha) * weight``."""
        return self._root((strengths or self.strengths(weight))["log_alpha"]) * weight

    @property
    def _highest(self) -> float:
        return 0.0 if self.approximation == "kingma" else math.inf

    def _root(self, log_alpha: Tensor) -> Tensor:
        if self.approximation == "kingma":
            # The gradient passes, so that the loss can bring a strength back below 1.
            log_alpha = straight_through(log_alpha, log_alpha.detach().clamp(max=self._highest))
        return (0.5 * log_alpha).exp()

    def kl_divergence(self, weight: Tensor, strengths: Mapping[str, Tensor]) -> Tensor:
        """The approximate divergence of all weights, in nats: an alpha counts once for each weight that has it."""
        log_alpha = wide(strengths["log_alpha"])
        if self.approximation == "molchanov":
            size, shift, slope = _SIGMOID
            each = size * torch.sigmoid(-shift - slope * log_alpha) + 0.5 * torch.nn.functional.softplus(
                -log_alpha
            )
        else:
            first, second, third = _CUBIC
            log_alpha = log_alpha.clamp(max=0.0)
            alpha = log_alpha.exp()
            each = _FAR - 0.5 * log_alpha - alpha * (first + alpha * (second + alpha * third))
        return each.sum() * (weight.numel() / max(each.numel(), 1))
