"""What a law of noise is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from weightnoise._random import draws as _random


@runtime_checkable
class Noise(Protocol):
    """A law of noise: anything with these two methods can stand in a spec.

    ``repr(law)`` should tell laws apart. A law may also have:

    - ``problem(weight) -> str | None``: why it does not fit a parameter; asked before a model is touched.
    - ``factor_problem(factor) -> str | None``: why its strength cannot be multiplied by ``factor``;
      asked when a context that scales is entered.
    - ``gradient``: ``"straight-through"`` if the gradient at the noisy weight goes to the clean one
      unchanged. Without it `weightnoise.testing` takes the gradient to be exact.
    - ``strengths(weight) -> dict[str, Tensor]``: initial values of what it learns. They become
      Parameters, and ``apply`` gets them as a fourth argument, a mapping of the same names; without
      it, it takes the initial values.
    - ``sign_symmetric = True``: ``w + x`` is as likely as ``w - x``, also where only some rows and columns of
      the noise change sign. Without it, ``estimator="flipout"`` refuses the law.
    - ``deviation(weight, strengths=None) -> Tensor | None``: if the noise is Gaussian, independent for
      each weight, and proportional to the factor: its standard deviation at factor 1, of either sign, in
      a shape that broadcasts against the weight. Without it, or for None, ``estimator="local"`` refuses.
    - ``kl_divergence(weight, strengths) -> Tensor``: what `kl_divergence` of the model adds up, in nats.
    - ``chip: int | None``: with a number, the draw is frozen: that of this specimen of the hardware.
      ``redraw(weight, frozen)`` then says what is drawn afresh in each forward; without it, nothing.
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
            factor: multiplies the strength; negative for the mirrored draw. A float, or, in compiled code under a
                `NoiseScheduler`, a 0-dim tensor, so that a step recompiles nothing: multiply by it, and where the
                law must decide by it, use `torch.where` for a tensor.
        """


@runtime_checkable
class ActivationLaw(Protocol):
    """A law of activations that looks at the module and its input, call by call.

    It may have ``module_problem(module, at) -> str | None``: why it does not fit a module.
    """

    def at(self, module: nn.Module, inputs: Tensor) -> Noise:
        """The law for one call.

        Args:
            module: the module; its weights read clean.
            inputs: the first input of the call.
        """


def law_at(law: Any, module: nn.Module, inputs: Tensor) -> Noise:
    """``law``, for one call of ``module``."""
    own = getattr(law, "at", None)
    found: Noise = law if own is None else own(module, inputs)
    return found


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


def factor_problem_of(law: Noise, factor: float) -> str | None:
    """Why the strength of ``law`` cannot be multiplied by ``factor``; None where it can."""
    ask = getattr(law, "factor_problem", None)
    return None if ask is None else ask(factor)


def strengths_of(law: Noise, weight: Tensor) -> dict[str, Tensor]:
    """Initial values of what ``law`` learns on ``weight``: nothing, for most laws."""
    make = getattr(law, "strengths", None)
    return {} if make is None else make(weight)


def is_straight_through(law: Noise) -> bool:
    """Whether the gradient at the noisy weight goes to the clean one unchanged."""
    return getattr(law, "gradient", "exact") == "straight-through"


def deviation_of(law: Noise, weight: Tensor, strengths: Mapping[str, Tensor]) -> Tensor | None:
    """The standard deviation of each weight, for independent Gaussian noise; None for any other."""
    ask = getattr(law, "deviation", None)
    return None if ask is None else ask(weight, strengths)


def apply_law(law: Noise, weight: Tensor, noise: Any, factor: float, strengths: Mapping[str, Tensor]) -> Tensor:
    """The noisy weight, for laws that learn a strength and for those that do not."""
    if strengths:
        noisy: Tensor = law.apply(weight, noise, factor, strengths)  # type: ignore[call-arg]
        return noisy
    return law.apply(weight, noise, factor)


def sample(law: Noise, weight: Tensor, factor: float = 1.0) -> Tensor:
    """One noisy weight from a fresh draw, at the initial strengths where the law learns them."""
    return law.apply(weight, law.draw(weight), factor)


def freeze(law: Noise, weight: Tensor, name: str) -> Any:
    """The draw of the law's chip for the parameter ``name``; None for a law that has no chip.

    It depends on the chip's number and on the name alone, and leaves torch's random state as it was.
    """
    own = getattr(law, "freeze", None)
    if own is not None:
        return own(weight, name)
    chip = getattr(law, "chip", None)
    if chip is None:
        return None
    with _random.seeded(_random.derive_seed(chip, name), weight.device), torch.no_grad():
        return law.draw(weight)


def redraw(law: Noise, weight: Tensor, frozen: Any) -> Any:
    """The draw of another forward on the same chip: what is frozen stays."""
    if frozen is None:
        return law.draw(weight)
    own = getattr(law, "redraw", None)
    return frozen if own is None else own(weight, frozen)


def moved(draw: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """A frozen draw on the device to which ``fn`` moves tensors; its dtype and its numbers stay."""
    if isinstance(draw, tuple):
        return tuple(moved(part, fn) for part in draw)
    return draw.to(fn(draw.new_empty(0)).device) if isinstance(draw, Tensor) else draw


def straight_through(weight: Tensor, noisy: Tensor) -> Tensor:
    """Exactly the value of ``noisy``, with the gradient going to ``weight`` unchanged."""
    return noisy + (weight - weight.detach())
