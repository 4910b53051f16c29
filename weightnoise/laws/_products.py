"""The largest product of an analog layer, the unit of its outputs; and noise that is relative to it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from weightnoise._checks import check_choice, check_strength
from weightnoise._errors import UnsupportedActivationError
from weightnoise._torch.layers import PRODUCTS
from weightnoise.laws._activation import Scaled
from weightnoise.laws._law import Law
from weightnoise.laws._options import law_repr
from weightnoise.laws._scale import wide

_NEEDS = (
    "it counts in the range of the Converter at the input of the layer, and there is none. Add one first, with "
    "at='input'"
)


def product_problem(module: nn.Module, at: str) -> str | None:
    """Why the outputs of ``module`` have no largest product, or None."""
    if not isinstance(module, PRODUCTS) or at != "output":
        return "it is for the output of nn.Linear, nn.Conv1d, nn.Conv2d and nn.Conv3d"
    return None if _input_converters(module) else _NEEDS


def largest_product(module: nn.Module, inputs: Any, whole: bool) -> Tensor:
    """The range of the converter at the input times max |w|: of the layer, or of each output, as it is stored."""
    if module.weight.is_meta and not getattr(inputs, "is_meta", True):
        raise UnsupportedActivationError(
            f"The law on the output of {type(module).__name__} is relative to a weight that is offloaded, and "
            "gone when there is an output. Leave this layer out of offloading."
        )
    with torch.no_grad():
        weight: Tensor = wide(module.weight).abs()  # type: ignore[arg-type]
        largest = weight.amax() if whole else weight.flatten(1).amax(1).reshape(-1, *[1] * (weight.ndim - 2))
        for hook in _input_converters(module):
            product: Tensor = largest * hook.full_scale(module, weight).amax()
            return product
    raise UnsupportedActivationError(f"The law on the output of {type(module).__name__} is relative: {_NEEDS}.")


def in_units(law: Law) -> bool:
    """Whether it looks up the range of the inputs, which another forward may set before a recomputation."""
    return (
        getattr(law, "relative_to", None) == "weights"
        or isinstance(law, OutputNoise)
        or any(map(in_units, law.inside))
    )


def _input_converters(module: nn.Module) -> list[Any]:
    """The hooks at the input that have a range."""
    return [hook for hook in module._forward_pre_hooks.values() if getattr(hook, "converter", None) is not None]


@dataclass(frozen=True)
class OutputNoise(Law):
    r"""Noise on the outputs of an analog layer, relative to its largest product: ``y + std r max |w| e``.

    r is the range of the `Converter` at the input of the same layer, max \|w\| its largest clean weight, and e
    standard normal for each output. In a list with a Converter that rounds the outputs, put the noise first. The
    gradient is that at the noisy output: r and max \|w\| count as constants. A factor multiplies ``std``.

    Args:
        std: standard deviation, in units of the largest product; 0.04 in aihwkit's recipes.
        per: ``"tensor"`` for the largest weight of the layer, ``"output"`` for that of each output.

    Raises:
        ValueError: for a strength that is negative or not finite, and for another ``per``.

    Example:
        >>> model = add_activation_noise(nn.Linear(4, 2), Converter(8, range=3.0), at="input")
        >>> model = add_activation_noise(model, [OutputNoise(0.04, per="output"), Converter(8, range="max")])

    Source:
        Rasch et al., Hardware-aware training for large-scale and diverse deep learning inference workloads using
        in-memory computing-based accelerators, 2023, arXiv 2302.08469.
    """

    std: float
    _: KW_ONLY
    per: Literal["tensor", "output"] = "tensor"

    gradient = "straight-through"
    __repr__ = law_repr

    def __post_init__(self) -> None:
        check_strength("OutputNoise", "std", self.std)
        check_choice("OutputNoise", "per", self.per, ("tensor", "output"))

    def at(self, module: nn.Module, inputs: Tensor) -> Scaled:
        """The law for one call."""
        return Scaled(self.std * largest_product(module, inputs, self.per == "tensor"), normal=True)

    def module_problem(self, module: nn.Module, at: str) -> str | None:
        """Why it does not fit the activations of ``module``, or None."""
        return product_problem(module, at)

    def laid_out(self, layout: Any) -> OutputNoise:
        """Itself: an output is that of the weight."""
        return self
