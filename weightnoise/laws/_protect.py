"""Sparing the weights that matter most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from weightnoise._checks import check_strength
from weightnoise._errors import OptionError
from weightnoise.laws._complete import complete
from weightnoise.laws._law import Law, Noise, apply_law, is_law
from weightnoise.laws._options import law_repr
from weightnoise.laws._rates import check_rate


@dataclass(frozen=True, eq=False)
class Protect(Law):
    r"""A law that spares the most important weights: ``w + scale (noisy - w)`` for them, ``noisy`` for the rest.

    Args:
        law: the law.
        fraction: how many of the weights are spared, in [0, 1]: the largest ``round(fraction n)`` of
            the tensor's n.
        by: ``"magnitude"`` ranks by the clean |w| in each forward; a tensor of the weight's shape
            ranks by its values, such as ``|w * w.grad|`` of a calibration batch.
        scale: what is left of the noise of the spared weights; 0 for none.

    Raises:
        ValueError: for a fraction outside [0, 1], an unknown ranking or a scale that is negative.

    Example:
        >>> law = Protect(Gaussian(0.1), 0.5)
        >>> weight = torch.tensor([3.0, 0.1])
        >>> law.apply(weight, law.draw(weight), 1.0)[0]
        tensor(3.)

    Source:
        Klachko, Mahmoodi and Strukov, Improving noise tolerance of mixed-signal neural networks,
        2019, arXiv 1904.01705.
    """

    law: Noise
    fraction: float
    _: KW_ONLY
    by: Literal["magnitude"] | Tensor = "magnitude"
    scale: float = 0.0

    __repr__ = law_repr

    def __post_init__(self) -> None:
        if not is_law(self.law):
            raise OptionError(f"Protect(law) must be a law such as Gaussian(0.1), got {self.law!r}.")
        check_rate("Protect", "fraction", self.fraction)
        check_strength("Protect", "scale", self.scale)
        if not isinstance(self.by, Tensor) and self.by != "magnitude":
            raise OptionError(f"Protect(by=...) must be 'magnitude' or a tensor of scores, got {self.by!r}.")
        part = complete(self.law)
        # A spared weight has the same noise, made smaller.
        own = {"parts": (part,), "gradient": part.gradient, "sign_symmetric": part.sign_symmetric}
        for name, value in own.items():
            object.__setattr__(self, name, value)

    def apply(
        self, weight: Tensor, noise: Any, factor: float, strengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The law's noisy weight, with ``scale`` times the noise on the weights that are spared."""
        noisy = apply_law(self.parts[0], weight, noise, factor, strengths or {})
        spared = weight + self.scale * (noisy - weight) if self.scale else weight
        return torch.where(self.spared(weight), spared, noisy)

    def spared(self, weight: Tensor) -> Tensor:
        """Which weights are spared, as a mask."""
        scores = weight.detach().abs() if isinstance(self.by, str) else self.by.detach().to(weight.device)
        mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
        best = torch.topk(scores.flatten(), round(self.fraction * scores.numel()), sorted=False).indices
        return mask.scatter(0, best, True).reshape(weight.shape)

    def deviation(self, weight: Tensor, strengths: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """That of the law, times ``scale`` for the weights that are spared; None where the law has none."""
        own = self.parts[0].deviation(weight, strengths or self.strengths(weight))
        return None if own is None else torch.where(self.spared(weight), self.scale * own, own)

    def problem(self, weight: Tensor) -> str | None:
        """Why the scores or the law do not fit ``weight``, or None."""
        if isinstance(self.by, Tensor) and self.by.shape != weight.shape:
            return f"the scores have shape {tuple(self.by.shape)}, the parameter {tuple(weight.shape)}"
        return super().problem(weight)

    def around(self, parts: tuple[Noise, ...]) -> Protect:
        """The same protection from another law."""
        return replace(self, law=parts[0])

    def plain(self) -> Law:
        """The law, if nothing is spared."""
        return self if self.fraction or isinstance(self.by, Tensor) else self.parts[0]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Protect):
            return NotImplemented
        if (self.law, self.fraction, self.scale) != (other.law, other.fraction, other.scale):
            return False
        if isinstance(self.by, Tensor) and isinstance(other.by, Tensor):
            return torch.equal(self.by, other.by)
        return type(self.by) is type(other.by)

    def __hash__(self) -> int:
        return hash((self.law, self.fraction, self.scale))
