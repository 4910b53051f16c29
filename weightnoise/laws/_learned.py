"""Noise whose strength is learned with the weights.

The strengths are Parameters of their own. For a weight ``0.weight`` the keys are
``0.parametrizations.weight.0.<name>``, with the name that each law gives below. The key of the clean
weight does not change. Applied without strengths, the laws take the initial ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from weightnoise._checks import check_choice, check_per, check_strength
from weightnoise._errors import OptionError
from weightnoise._random import draws as _random
from weightnoise._torch.layers import Layout
from weightnoise.laws._factorised import Factors, draw_factors, product
from weightnoise.laws._law import Law
from weightnoise.laws._options import law_repr
from weightnoise.laws._regions import Per, Regions
from weightnoise.laws._scale import Gradient, add_scaled, scale_of


@dataclass(frozen=True)
class LearnedGaussian(Law):
    r"""Gaussian noise of a learned strength per weight (NoisyNets): ``w + std * e``.

    ``e`` is standard normal per element, or, factorised, ``e_ij = f(e_i) f(e_j)`` with
    ``f(x) = sign(x) sqrt(|x|)`` for output i and input j: n + m random numbers in place of n m, and a
    real standard deviation of ``sqrt(2 / pi) std``, that is 0.798 std. The bias of a layer of torch has f(e_i),
    with the e_i of its row of the weight in the same forward, where both are factorised. ``std`` is a Parameter of
    the weight's shape, of either sign. The gradient is exact in w and in std.

    Args:
        init: the first value of ``std``; None for 0.017, or ``0.5 / sqrt(fan_in)`` when factorised.
        factorised: draw a number per output and per input. The first value of a vector, such as a bias, is that
            of its own length: NoisyNets take the fan-in of the layer, so give it as ``init``.

    Raises:
        ValueError: for an initial value that is negative or not finite.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), LearnedGaussian())
        >>> [name for name, _ in model.named_parameters()]
        ['weight', 'bias', 'parametrizations.weight.0.std']

    Source:
        Fortunato et al., Noisy networks for exploration, 2017, arXiv 1706.10295.
    """

    init: float | None = None
    _: KW_ONLY
    factorised: bool = False

    sign_symmetric = True
    layout: ClassVar[Layout | None] = None
    __repr__ = law_repr

    def __post_init__(self) -> None:
        if self.init is not None:
            check_strength("LearnedGaussian", "init", self.init)
        check_choice("LearnedGaussian", "factorised", self.factorised, (True, False))
        object.__setattr__(self, "normal_draw", not self.factorised)

    def strengths(self, weight: Tensor) -> dict[str, Tensor]:
        """``std`` for each weight."""
        init = self.init
        if init is None:
            fan_in = weight[0].numel() if weight.ndim > 1 and len(weight) else weight.numel()
            init = 0.5 / math.sqrt(max(fan_in, 1)) if self.factorised else 0.017
        return {"std": _filled(weight, init)}

    def draw(self, weight: Tensor) -> Tensor | Factors:
        """Standard normal numbers in the weight's shape; factorised: f of those of outputs and of inputs."""
        return draw_factors(weight, self.layout) if self.factorised else _random.normal(weight)

    def apply(
        self,
        weight: Tensor,
        noise: Tensor | Factors,
        factor: float,
        strengths: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """``weight + factor * std * noise``."""
        if isinstance(noise, tuple):
            noise = product(noise, weight, self.layout)
        return weight + (strengths or self.strengths(weight))["std"] * noise * factor

    def deviation(self, weight: Tensor, strengths: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """``std``; None when factorised, where the weights of a row or column move together."""
        return None if self.factorised else (strengths or self.strengths(weight))["std"]

    def laid_out(self, layout: Layout | None) -> LearnedGaussian:
        """The law for a tensor whose outputs lie so; factorised, it has their numbers in common with the layer."""
        if not self.factorised or layout is None:
            return self
        own = replace(self)
        vars(own).update(layout=layout, common=None if layout.output is None else "layer")
        return own


class LearnedDeviation(Law):
    """Independent Gaussian noise on each weight, whose standard deviation has something learned in it."""

    sign_symmetric = True
    normal_draw = True

    def draw(self, weight: Tensor) -> Tensor:
        """Standard normal numbers in the weight's shape."""
        return _random.normal(weight)

    def apply(
        self, weight: Tensor, noise: Tensor, factor: float, strengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """``weight + factor * deviation(weight) * noise``."""
        return add_scaled(weight, noise, factor, self.deviation(weight, strengths)).to(weight.dtype)

    def deviation(self, weight: Tensor, strengths: Mapping[str, Tensor] | None = None) -> Tensor:
        """The standard deviation, of either sign."""
        raise NotImplementedError

    def problem(self, weight: Tensor) -> str | None:
        """Why what it learns has no shape on ``weight``, or None."""
        if isinstance(self.regions, Regions) and self.regions.layout is not None:
            return f"per={self.regions!r} is no dimension of a layer of groups. Use per='element', or a dimension"
        return super().problem(weight)


@dataclass(frozen=True)
class ParametricNoise(LearnedDeviation):
    r"""Parametric noise injection: ``w + strength * std(w) * e``, the strength learned, on top of std(w).

    ``e`` is standard normal per element, std(w) the standard deviation of the whole tensor, and
    ``strength`` a Parameter with one element, one per channel, or one per weight. On its own the loss
    drives it to zero; the source trains on adversarial examples. The gradient is exact in the strength.

    Args:
        init: the first value of ``strength``.
        per: what has a strength of its own: ``"tensor"``, ``"element"``, ``"output"`` or ``"input"`` for each
            output or input of the layer, or the dimension of the channels.
        gradient: ``"straight-through"`` takes std(w) as a constant; ``"exact"`` differentiates through it.

    Raises:
        ValueError: for an initial value that is negative or not finite, and an unknown ``per``.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), ParametricNoise(per=0))
        >>> learned_strengths(model)["parametrizations.weight.0.strength"].shape
        torch.Size([2, 1])

    Source:
        He, Rakin and Fan, Parametric noise injection: trainable randomness to improve deep neural
        network robustness against adversarial attack, 2019, arXiv 1811.09310.
    """

    init: float = 0.25
    _: KW_ONLY
    per: Per | Literal["element"] = "tensor"
    gradient: Gradient = "straight-through"

    __repr__ = law_repr

    def __post_init__(self) -> None:
        check_strength("ParametricNoise", "init", self.init)
        if self.per != "element":
            check_per("ParametricNoise", self.per)
        check_choice("ParametricNoise", "gradient", self.gradient, ("straight-through", "exact"))

    def strengths(self, weight: Tensor) -> dict[str, Tensor]:
        """``strength``, shaped to broadcast against the weight."""
        return {"strength": filled_per(weight, self.regions, self.init)}

    def deviation(self, weight: Tensor, strengths: Mapping[str, Tensor] | None = None) -> Tensor:
        """``strength * std(weight)``."""
        scale = scale_of(weight, "std", "tensor", self.gradient)
        assert scale is not None
        return (strengths or self.strengths(weight))["strength"] * scale


def filled_per(like: Tensor, per: Per | Literal["element"], value: float) -> Tensor:
    """A number for the tensor, for each of its channels or for each element, shaped to broadcast against it."""
    if per == "element":
        return _filled(like, value)
    own = per % like.ndim if isinstance(per, int) else None
    if own is None and per != "tensor":
        raise OptionError(f"per={per} is known where a layer is, and has to be one dimension of the weight.")
    return _filled(like.new_empty([size if dim == own else 1 for dim, size in enumerate(like.shape)]), value)


def _filled(like: Tensor, value: float) -> Tensor:
    return torch.full(like.shape, value, dtype=like.dtype, device=like.device)
