"""Gaussian noise whose strength is learned for each weight, as a posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from weightnoise._checks import check_strength
from weightnoise._errors import OptionError
from weightnoise._random import passes as _passes
from weightnoise.laws._learned import LearnedDeviation, filled_per
from weightnoise.laws._options import law_repr
from weightnoise.laws._pieces import LARGE
from weightnoise.laws._scale import wide


@dataclass(frozen=True)
class Variational(LearnedDeviation):
    r"""Gaussian noise of a learned strength, for variational inference: ``w + softplus(rho) e``.

    ``e`` is standard normal per element; the weight is the mean of the approximate posterior and
    ``softplus(rho)`` its standard deviation, with a Parameter ``rho`` of the weight's shape. Add
    `kl_divergence` of the model, over the number of training examples, to the mean loss. The gradient
    is exact in w and in rho. A factor multiplies the standard deviation and leaves the divergence.

    Args:
        init_rho: the first value of ``rho``; -3 is a standard deviation of 0.049.
        prior_std: standard deviation of the prior N(0, prior_std^2) of each weight.

    Raises:
        ValueError: for values that are not finite, and a prior without width.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), Variational(prior_std=0.5))
        >>> bool(kl_divergence(model) > 0)
        True

    Source:
        Graves, Practical variational inference for neural networks, 2011; Blundell et al., Weight
        uncertainty in neural networks, 2015, arXiv 1505.05424.
    """

    init_rho: float = -3.0
    _: KW_ONLY
    prior_std: float = 1.0

    __repr__ = law_repr

    def __post_init__(self) -> None:
        number = isinstance(self.init_rho, (int, float)) and not isinstance(self.init_rho, bool)
        if not number or not math.isfinite(self.init_rho):
            raise OptionError(f"Variational(init_rho=...) must be a finite number, got {self.init_rho!r}.")
        check_strength("Variational", "prior_std", self.prior_std)
        if self.prior_std == 0:
            raise OptionError("Variational(prior_std=0) would forbid every weight but 0; it must be positive.")

    def strengths(self, weight: Tensor) -> dict[str, Tensor]:
        """``rho`` for each weight."""
        return {"rho": filled_per(weight, "element", self.init_rho)}

    def apply(
        self, weight: Tensor, noise: Tensor, factor: float, strengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """``weight + factor * softplus(rho) * noise``."""
        rho = (strengths or self.strengths(weight))["rho"]
        if weight.numel() < LARGE or not _passes.can_apply(factor, weight, noise, rho):
            return super().apply(weight, noise, factor, {"rho": rho})

        def gradients(grad: Tensor, noise: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
            return grad, grad * noise * torch.sigmoid(rho) * factor

        def make() -> Tensor:
            return _passes.apply(_passes.SOFTPLUS, (factor,), weight, noise, rho)

        return _passes.with_gradients(make, gradients, (noise, rho), weight, rho)

    def deviation(self, weight: Tensor, strengths: Mapping[str, Tensor] | None = None) -> Tensor:
        """``softplus(rho)``."""
        return softplus((strengths or self.strengths(weight))["rho"])

    def kl_divergence(self, weight: Tensor, strengths: Mapping[str, Tensor]) -> Tensor:
        """``sum ln(prior_std / s) + (s^2 + w^2) / (2 prior_std^2) - 1/2`` with ``s = softplus(rho)``, in nats."""
        rho, weight, prior = wide(strengths["rho"]), wide(weight), self.prior_std
        spread: Tensor = (softplus(rho).square() + weight.square()) / (2 * prior**2) - _log_softplus(rho)
        return spread.sum() + weight.numel() * (math.log(prior) - 0.5)


def _log_softplus(rho: Tensor) -> Tensor:
    """``ln ln(1 + e^rho)``, also where e^rho is no number of the dtype: there it is ``rho - e^rho / 2``."""
    small = rho < -20.0
    return torch.where(small, rho - 0.5 * rho.exp(), softplus(torch.where(small, 0.0, rho)).log())
