"""Noise that is added to the weight: Gaussian and uniform, absolute or relative."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from weightnoise._checks import check_strength
from weightnoise._random import draws as _random
from weightnoise._random import philox as _engine
from weightnoise.laws._given import Given, as_given
from weightnoise.laws._law import Law
from weightnoise.laws._options import law_repr
from weightnoise.laws._regions import Per, Regions, Tile
from weightnoise.laws._scale import (
    Gradient,
    RelativeTo,
    add_scaled,
    check_scale_options,
    has_parts,
    scale_of,
    scale_of_part,
)


@dataclass(frozen=True)
class Gaussian(Law):
    r"""Gaussian weight noise: ``w + std * scale(w) * e`` with ``e ~ N(0, 1)`` per element.

    ``scale`` is 1 for ``relative_to=None``; max |w| for ``"absmax"``; the standard deviation of w
    for ``"std"``; its root mean square for ``"rms"``; and w itself for ``"value"``, which makes
    the noise multiplicative, ``w (1 + std e)``.

    Args:
        std: strength, in units of the weight, or of the scale it is relative to. 0.01 to 0.1 is
            usual for absolute noise, 0.02 to 0.1 of absmax for analog hardware. Or one for each element: a tensor
            of the shape of the parameter, a mapping from names of parameters to tensors, or the name of a file of
            one of them, made by ``torch.save``. It is copied into the state of the model, as a buffer
            ``parametrizations.weight.0.std`` beside the parameter ``weight``, and moved and cast with it.
        relative_to: ``None``, ``"absmax"``, ``"std"``, ``"rms"`` or ``"value"``.
        per: what has a scale of its own: ``"tensor"``, ``"output"`` or ``"input"`` for each output or input of the
            layer, or the dimension of the channels.
        tile: rows and columns of the crossbars that the weight is cut into, of which each has scales of its own: a
            row of the matrix W in y = W x is an output, a column an input. That of a convolution is its unrolled
            matrix, whose columns are the places of the kernel for each input, for each group of channels one. What
            is left at the end of a side makes smaller tiles. None for the whole weight.
        gradient: ``"straight-through"`` hands the gradient at the noisy weight to the clean one
            unchanged; ``"exact"`` differentiates through the scale too, and is on average the gradient of
            the expected loss. Without a scale both agree.

    Raises:
        ValueError: for a strength that is negative or not finite, and for options that do not fit.

    Example:
        >>> Gaussian(0.06, relative_to="absmax", per=0)
        Gaussian(std=0.06, relative_to='absmax', per=0)

    Source:
        Murray and Edwards, Enhanced MLP performance and fault tolerance resulting from synaptic
        weight noise during training, 1994; Graves, Practical variational inference for neural
        networks, 2011; relative to absmax: Joshi et al., Accurate deep neural network inference
        using computational phase-change memory, 2020, arXiv 1906.03138.
    """

    std: float | Tensor | Mapping[str, Tensor] | str
    _: KW_ONLY
    relative_to: RelativeTo = None
    per: Per = "tensor"
    tile: Tile = None
    gradient: Gradient = "straight-through"

    sign_symmetric = True
    normal_draw = True
    __repr__ = law_repr

    def __post_init__(self) -> None:
        object.__setattr__(self, "std", as_given("Gaussian", "std", self.std))
        if not isinstance(self.std, Given):
            check_strength("Gaussian", "std", self.std)
        check_scale_options("Gaussian", self.relative_to, self.per, self.gradient, self.tile)

    def draw(self, weight: Tensor) -> Tensor:
        """Standard normal numbers in the weight's shape."""
        return _random.normal(weight)

    def given(self, weight: Tensor) -> dict[str, Tensor]:
        """``std`` where it is a tensor."""
        return {"std": self.std.tensor()} if isinstance(self.std, Given) else {}

    def named(self, names: Sequence[str]) -> Gaussian:
        """The law for the parameter of these names."""
        if not isinstance(self.std, Given):
            return self
        own: Any = self.std.of(names)
        return replace(self, std=own)

    def apply(
        self, weight: Tensor, noise: Tensor, factor: float, strengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """``weight + factor * std * scale(weight) * noise``."""
        scale = self.relative_to and scale_of(weight, self.relative_to, self.regions, self.gradient)
        std: Any = self.std
        if isinstance(std, Given):
            std, each = 1.0, self._each(weight, strengths)
            scale = each if scale is None else each * scale
        return add_scaled(weight, noise, factor * std, scale)

    def apply_over(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        """`apply`, which writes over the noise where that has the form of the weight."""
        if isinstance(self.std, Given) or noise.dtype is not weight.dtype or noise.stride() != weight.stride():
            return self.apply(weight, noise, factor)
        std: Any = self.std
        scale = self.relative_to and scale_of(weight, self.relative_to, self.regions, self.gradient)
        return add_scaled(weight, noise, factor * std, scale, out=noise)

    def _each(self, weight: Tensor, strengths: Mapping[str, Tensor] | None) -> Tensor:
        """The strength of each element, from the state of the module, or the tensor itself."""
        if strengths:
            return strengths["std"]
        given: Any = self.std
        each: Tensor = given.tensor().to(weight)
        return each

    @property
    def takes_keys(self) -> bool:  # type: ignore[override]
        """Whether `apply_key` is right: the scale is that of a dimension, and no gradient goes through it."""
        constant = self.relative_to is None or self.gradient == "straight-through"
        return (
            constant
            and not isinstance(self.std, Given)
            and self.relative_to != "value"
            and not isinstance(self.regions, Regions)
        )

    def apply_key(self, weight: Tensor, key: int | Tensor, factor: float, out: Tensor | None = None) -> Tensor:
        """`apply` to the normals that belong to a key, in one pass; into ``out``, which may be the weight."""
        std: Any = self.std
        scale = self.relative_to and scale_of(weight, self.relative_to, self.regions, self.gradient)
        return _engine.add_normal(weight, key, factor * std, scale, out)

    def apply_to_rows(
        self, weight: Tensor, rows: Tensor, index: Tensor, noise: Tensor | int, factor: float
    ) -> Tensor:
        """The rows ``index`` of what `apply` or `apply_key` makes of ``weight``."""
        std: Any = self.std
        scale = scale_of(weight, self.relative_to, self.regions, self.gradient)
        if scale is not None and isinstance(self.regions, int) and self.regions % weight.ndim == 0:
            scale = scale[index]
        if isinstance(noise, Tensor):
            return add_scaled(rows, noise[index], factor * std, scale)
        return _engine.add_normal_rows(rows, index, noise, factor * std, scale)

    def apply_part(
        self, part: Tensor, noise: Any, factor: float, over_parts: Callable[[Tensor], Tensor]
    ) -> Tensor | None:
        """The part of what `apply` makes of a weight that belongs to ``part`` of it; None where that takes more.

        Args:
            part: of the weight.
            noise: of the draw; in place of a key, the key with the number of each row of the part.
            factor: as for `apply`.
            over_parts: makes of the largest numbers of this part those of all parts.
        """
        if isinstance(self.std, Given) or not has_parts(self):
            return None
        std: Any = self.std
        scale = scale_of_part(self, part, over_parts)
        if isinstance(noise, Tensor):
            return add_scaled(part, noise, factor * std, scale)
        key, rows = noise
        flat = part.reshape(len(rows), -1)
        if scale is not None and scale.shape[0] == 1 < scale.numel():
            scale = scale.expand(1, *part.shape[1:]).reshape(1, -1)
        return _engine.add_normal_rows(flat, rows, key, factor * std, scale).reshape(part.shape)

    def deviation(self, weight: Tensor, strengths: Mapping[str, Tensor] | None = None) -> Tensor:
        """``std * scale(weight)``."""
        scale = scale_of(weight, self.relative_to, self.regions, self.gradient)
        std: Any = self.std
        if isinstance(std, Given):
            each = self._each(weight, strengths)
            return each if scale is None else each * scale
        return (
            torch.full((), std, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
            if scale is None
            else std * scale
        )

    def problem(self, weight: Tensor) -> str | None:
        """Why ``per`` or ``std`` does not fit ``weight``, or None."""
        given = self.std.problem("std", weight) if isinstance(self.std, Given) else None
        return given or super().problem(weight)

    def module_problem(self, module: nn.Module, at: str) -> str | None:
        """Why it does not fit the activations of a module, or None."""
        if isinstance(self.std, Given):
            return "a tensor as std has a fixed shape, and activations have none. Give a number"
        return super().module_problem(module, at)


@dataclass(frozen=True)
class Uniform(Law):
    r"""Uniform weight noise: ``w + bound * scale(w) * u`` with ``u ~ U(-1, 1)`` per element.

    Its standard deviation is ``bound / sqrt(3)`` times the scale.

    Args:
        bound: the largest deviation, in units of the weight, or of the scale it is relative to.
        relative_to: ``None``, ``"absmax"``, ``"std"``, ``"rms"`` or ``"value"``, as for `Gaussian`.
        per: what has a scale of its own: ``"tensor"``, ``"output"`` or ``"input"`` for each output or input of the
            layer, or the dimension of the channels.
        tile: rows and columns of the crossbars that the weight is cut into, as for `Gaussian`.
        gradient: ``"straight-through"`` or ``"exact"``, as for `Gaussian`.

    Raises:
        ValueError: for a bound that is negative or not finite, and for options that do not fit.

    Example:
        >>> Uniform(0.05).bound
        0.05

    Source:
        Zhou et al., Noisy machines: understanding noisy neural networks and enhancing robustness
        to analog hardware errors, 2020, arXiv 2001.04974; multiplicative: arXiv 1904.01705.
    """

    bound: float
    _: KW_ONLY
    relative_to: RelativeTo = None
    per: Per = "tensor"
    tile: Tile = None
    gradient: Gradient = "straight-through"

    sign_symmetric = True
    __repr__ = law_repr

    def __post_init__(self) -> None:
        check_strength("Uniform", "bound", self.bound)
        check_scale_options("Uniform", self.relative_to, self.per, self.gradient, self.tile)

    def draw(self, weight: Tensor) -> Tensor:
        """Numbers uniform on [-1, 1] in the weight's shape."""
        return _random.symmetric_uniform(weight)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        """``weight + factor * bound * scale(weight) * noise``."""
        scale = self.relative_to and scale_of(weight, self.relative_to, self.regions, self.gradient)
        return add_scaled(weight, noise, factor * self.bound, scale)

    def apply_part(
        self, part: Tensor, noise: Tensor, factor: float, over_parts: Callable[[Tensor], Tensor]
    ) -> Tensor | None:
        """As for `Gaussian`."""
        if not has_parts(self):
            return None
        return add_scaled(part, noise, factor * self.bound, scale_of_part(self, part, over_parts))
