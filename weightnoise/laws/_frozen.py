"""A draw that belongs to a chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from weightnoise._errors import OptionError
from weightnoise.laws._complete import complete
from weightnoise.laws._law import Law, Noise, apply_law, is_law
from weightnoise.laws._options import law_repr
from weightnoise.laws._rates import check_chip


@dataclass(frozen=True)
class Frozen(Law):
    """A law whose draw is that of a chip: the same in every forward, process and copy.

    It depends on ``chip`` and on the parameter's name alone, as long as the same generator draws it (another kind
    of device, float64 or another `engine` make it another specimen), and is kept beside the weight. Strength and
    scale are applied in each forward, so that they follow the weights. `hold_noise` puts another chip in place for
    its length, and keeps it with ``reads="fresh"`` too. In a list it stands beside laws that draw anew:
    ``[Frozen(Gaussian(0.03), chip=7), Gaussian(0.01)]`` has the errors of one programming and a noise of reading.

    Args:
        law: the law. All of its draw is frozen, also what it would read anew.
        chip: number of the specimen.

    Raises:
        ValueError: for anything that is no law, and a chip that is no whole number from 0 on.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2))
        >>> model = add_weight_noise(model, Frozen(Gaussian(0.1), chip=7))
        >>> torch.equal(model(torch.ones(1, 3)), model(torch.ones(1, 3)))
        True

    Source:
        Errors of programming and of reading as in Joshi et al., Accurate deep neural network inference using
        computational phase-change memory, 2020.
    """

    law: Noise
    chip: int = 0

    __repr__ = law_repr

    def __post_init__(self) -> None:
        if not is_law(self.law):
            raise OptionError(f"Frozen(law) must be a law such as Gaussian(0.1), got {self.law!r}.")
        check_chip("Frozen", self.chip)
        if self.chip is None:
            raise OptionError("Frozen(chip=None) freezes nothing: give the law by itself, or a whole number.")
        part = complete(self.law)
        for name in ("gradient", "sign_symmetric"):
            object.__setattr__(self, name, getattr(part, name))
        object.__setattr__(self, "parts", (part,))

    def apply(
        self, weight: Tensor, noise: Any, factor: float, strengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The law's noisy weight."""
        return apply_law(self.parts[0], weight, noise, factor, strengths or {})

    def redraw(self, weight: Tensor, frozen: Any) -> Any:
        """What is frozen, all of it."""
        return frozen

    def deviation(self, weight: Tensor, strengths: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """That of the law over chips."""
        return self.parts[0].deviation(weight, strengths)

    def kl_divergence(self, weight: Tensor, strengths: Mapping[str, Tensor]) -> Tensor | None:
        """That of the law."""
        return self.parts[0].kl_divergence(weight, strengths)

    def around(self, parts: tuple[Noise, ...]) -> Frozen:
        """The same chip of another law."""
        return replace(self, law=parts[0])
