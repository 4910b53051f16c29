"""From a value in a spec to a law: a number, a law, a list of laws, or None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from weightnoise._checks import plain_number
from weightnoise._errors import SpecError
from weightnoise.laws._additive import Gaussian
from weightnoise.laws._complete import complete
from weightnoise.laws._law import Law, Noise, apply_law, is_law


@dataclass(frozen=True)
class Chain(Law):
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

    def __post_init__(self) -> None:
        laws = [as_law(law) for law in self.laws] if isinstance(self.laws, (list, tuple)) else []
        if not laws or None in laws:
            raise SpecError(f"Chain(laws) must be a tuple of one or more laws, without None, got {self.laws!r}.")
        object.__setattr__(self, "laws", tuple(laws))
        object.__setattr__(self, "parts", tuple(map(complete, self.laws)))

    def apply(
        self, weight: Tensor, noise: Any, factor: float, strengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Each law on what the one before it made."""
        drawn = (noise,) if len(self.parts) == 1 else noise
        for place, (law, own) in enumerate(zip(self.parts, drawn, strict=True)):
            weight = apply_law(law, weight, own, factor, self.own(place, strengths))
        return weight

    def kl_divergence(self, weight: Tensor, strengths: Mapping[str, Tensor]) -> Tensor | None:
        """That of the first law, whose mean is the weight, where no other law has one."""
        if any(law.says("kl_divergence") for law in self.parts[1:]):
            return None
        return self.parts[0].kl_divergence(weight, self.own(0, strengths))

    def says(self, name: str) -> bool:
        """Whether one of the laws has a method of its own in place of a default."""
        return any(law.says(name) for law in self.parts)

    def around(self, parts: tuple[Noise, ...]) -> Chain:
        """A list of other laws."""
        return Chain(parts)

    def plain(self) -> Law:
        """The law of a list of one."""
        return self.parts[0] if len(self.parts) == 1 else self

    def __repr__(self) -> str:
        return repr(list(self.laws))


def as_law(value: object) -> Noise | None:
    """The law that a value of a spec stands for: a number, a law, a list of laws, or None.

    Raises:
        SpecError: for anything else.
    """
    value = plain_number(value)
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
    if is_law(value):
        return value  # type: ignore[return-value]
    if isinstance(value, nn.Module):
        instead = "Give a law such as Gaussian(0.01)."
        if isinstance(value, nn.Dropout):
            instead = f"DropConnect({value.p!r}) drops elements as it does."
        raise SpecError(f"{value!r} is a module, and no law. {instead}")
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
