"""What a law of noise is."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Noise(Protocol):
    """A law of noise: anything with these two methods can stand in a spec.

    A law may also have a method ``problem(weight) -> str | None`` that says why it does not fit a
    parameter; it is asked before a model is touched. ``repr(law)`` should tell laws apart.
    """

    def draw(self, weight: Tensor) -> Any:
        """Random numbers for ``weight``, from torch's generator, without a gradient.

        Args:
            weight: the clean weight; look at its shape, dtype and device.

        Returns:
            A tensor, or a tuple of them, that does not depend on the law's strength.
        """

    def apply(self, weight: Tensor, noise: Any, factor: float) -> Tensor:
        """The noisy weight: differentiable in ``weight``, with its shape and dtype.

        Args:
            weight: the clean weight.
            noise: what `draw` returned.
            factor: multiplies the strength; negative for the mirrored draw.
        """


def law_repr(law: Any) -> str:
    """``Gaussian(std=0.1)``: the options that differ from their defaults, as one would write them."""
    options = (
        f"{option.name}={getattr(law, option.name)!r}"
        for option in fields(law)
        if option.default is MISSING or getattr(law, option.name) != option.default
    )
    return f"{type(law).__name__}({', '.join(options)})"


def problem_of(law: Noise, weight: Tensor) -> str | None:
    """Why ``law`` does not fit ``weight``; None where it fits or does not say."""
    ask = getattr(law, "problem", None)
    return None if ask is None else ask(weight)


def straight_through(weight: Tensor, noisy: Tensor) -> Tensor:
    """Exactly the value of ``noisy``, with the gradient going to ``weight`` unchanged."""
    return noisy + (weight - weight.detach())
