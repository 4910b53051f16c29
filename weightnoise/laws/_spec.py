"""From a value in a spec to a law: a number, a law, a list of laws, or None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from weightnoise._errors import SpecError
from weightnoise.laws._additive import Gaussian
from weightnoise.laws._law import (
    ActivationLaw,
    Noise,
    apply_law,
    factor_problem_of,
    freeze,
    law_at,
    problem_of,
    redraw,
    strengths_of,
)
from weightnoise.laws._protect import Protect


@dataclass(frozen=True)
class Chain:
    """Laws applied one after the other; a list of laws in a spec becomes this.

    Args:
        laws: the laws, first applied first.

    Example:
        >>> Chain((Gaussian(0.1), DropConnect(0.5))).laws[1].p
        0.5

    Source:
        The order clip, quantise, add noise is that of hardware-aware training: Rasch et al., 2023,
        arXiv 2302.08469.
    """

    laws: tuple[Noise, ...]

    def draw(self, weight: Tensor) -> tuple[Any, ...]:
        """One draw for each law."""
        return tuple(law.draw(weight) for law in self.laws)

    def apply(
        self, weight: Tensor, noise: tuple[Any, ...], factor: float, strengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Each law on what the one before it made."""
        for place, (law, drawn) in enumerate(zip(self.laws, noise, strict=True)):
            weight = apply_law(law, weight, drawn, factor, self.own(place, strengths or {}))
        return weight

    def strengths(self, weight: Tensor) -> dict[str, Tensor]:
        """What the laws learn; ``std`` of the law in place 1 is called ``std_1``."""
        return {
            f"{name}_{place}": value
            for place, law in enumerate(self.laws)
            for name, value in strengths_of(law, weight).items()
        }

    def own(self, place: int, strengths: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the law in ``place`` learns, under its own names."""
        end = f"_{place}"
        return {name.removesuffix(end): value for name, value in strengths.items() if name.endswith(end)}

    def freeze(self, weight: Tensor, name: str) -> tuple[Any, ...] | None:
        """The frozen draws; None where no law has a chip."""
        frozen = tuple(freeze(law, weight, f"{name}[{place}]") for place, law in enumerate(self.laws))
        return None if all(part is None for part in frozen) else frozen

    def redraw(self, weight: Tensor, frozen: tuple[Any, ...]) -> tuple[Any, ...]:
        """A fresh draw of what is not frozen."""
        return tuple(redraw(law, weight, part) for law, part in zip(self.laws, frozen, strict=True))

    def at(self, module: nn.Module, inputs: Tensor) -> Chain:
        """The laws for one call of a module, where activations carry them."""
        return Chain(tuple(law_at(law, module, inputs) for law in self.laws))

    def module_problem(self, module: nn.Module, at: str) -> str | None:
        """The first problem that one of the laws has with ``module``, or None."""
        asked = (getattr(law, "module_problem", lambda *_: None)(module, at) for law in self.laws)
        return next((found for found in asked if found), None)

    def problem(self, weight: Tensor) -> str | None:
        """The first problem that one of the laws has with ``weight``, or None."""
        return next((found for law in self.laws if (found := problem_of(law, weight))), None)

    def factor_problem(self, factor: float) -> str | None:
        """The first problem that one of the laws has with ``factor``, or None."""
        return next((found for law in self.laws if (found := factor_problem_of(law, factor))), None)

    def __repr__(self) -> str:
        return repr(list(self.laws))


def as_law(value: object) -> Noise | None:
    """The law that a value of a spec stands for: a number, a law, a list of laws, or None.

    Raises:
        SpecError: for anything else.
    """
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return Gaussian(value)
        except ValueError as error:
            raise SpecError(str(error)) from None
    if isinstance(value, (list, tuple)):
        return _as_chain(value)
    if isinstance(value, type):
        raise SpecError(f"{value.__name__} is a class, not a law. Make one: {value.__name__}(...).")
    if isinstance(value, (Noise, ActivationLaw)):
        return value  # type: ignore[return-value]
    raise SpecError(
        f"{value!r} ({type(value).__name__}) is no law. "
        "Give a number, a law such as Gaussian(0.01), a list of laws, or None."
    )


def _as_chain(values: Sequence[object]) -> Noise:
    laws = [as_law(value) for value in values]
    if not laws or None in laws:
        raise SpecError(f"{values!r} must be a list of one or more laws, without None.")
    # A list in a list is one list, and a list of one law is that law: with its names, its chip and what it can do.
    flat = [part for law in laws if law is not None for part in (law.laws if isinstance(law, Chain) else (law,))]
    return flat[0] if len(flat) == 1 else Chain(tuple(flat))


def innermost(law: object) -> list[Any]:
    """The laws that a law is made of: those of a list, the one in a `Protect`, and itself for any other.

    A law of a user may have laws as attributes, which count too.
    """
    if isinstance(law, Chain):
        return [part for one in law.laws for part in innermost(one)]
    if isinstance(law, Protect):
        return innermost(law.law)
    held = [value for value in getattr(law, "__dict__", {}).values() if isinstance(value, Noise)]
    return [law, *(part for one in held if not isinstance(one, type) for part in innermost(one))]


def is_for_activations(law: Noise) -> bool:
    """Whether ``law`` needs the module and its input, so that no parameter can carry it."""
    return any(isinstance(part, ActivationLaw) for part in innermost(law))


def learns_or_freezes(law: Noise) -> str | None:
    """Why ``law`` needs a tensor of one fixed shape, and so cannot be on activations; None where it does not."""
    for part in innermost(law):
        if hasattr(part, "strengths"):
            return "it learns a strength for each weight, and activations have no fixed shape"
        if getattr(part, "chip", None) is not None:
            return "what a chip freezes has a fixed shape, and activations have none. Use chip=None"
    return None
