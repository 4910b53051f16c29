"""The two forms of a law that a spec takes."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Noise(Protocol):
    """A law of noise: anything with these two methods can stand in a spec.

    ``repr(law)`` should tell laws apart. What a law may have besides is in `weightnoise.laws.Law`.
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
