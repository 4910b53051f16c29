"""Laws of activations: what a module takes in or puts out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from weightnoise._checks import check_choice, check_strength
from weightnoise._errors import OptionError
from weightnoise._random import draws as _random
from weightnoise._random import passes as _passes
from weightnoise._torch.layers import PRODUCTS, layer_product, precise_products
from weightnoise._torch.modes import number_of
from weightnoise.laws._law import Law, straight_through
from weightnoise.laws._options import law_repr
from weightnoise.laws._pieces import LARGE, by_pieces
from weightnoise.laws._rates import check_rate, draw_events, event_mask, intervals, rate_problem
from weightnoise.laws._scale import Gradient, extremes, wide


@dataclass(frozen=True)
class SaltAndPepper(Law):
    r"""Salt-and-pepper noise: a fraction p of the values is replaced, half by the lowest, half by the highest.

    A factor multiplies p; the mirrored draw swaps salt and pepper.

    Args:
        p: rate of replaced values, in [0, 1].
        levels: ``(low, high)``, such as (0, 1) for images; None for the smallest and largest value of
            the tensor.
        gradient: ``"exact"`` gives replaced values no gradient of their own; ``"straight-through"``
            hands the gradient at the noisy value to all of them.

    Raises:
        ValueError: for a rate outside [0, 1] and levels out of order.

    Example:
        >>> law = SaltAndPepper(0.5, levels=(0.0, 1.0))
        >>> image = torch.full((100,), 0.5)
        >>> sorted(set(law.apply(image, law.draw(image), 1.0).tolist()))
        [0.0, 0.5, 1.0]

    Source:
        Gonzalez and Woods, Digital image processing, 2002.
    """

    p: float
    _: KW_ONLY
    levels: tuple[float, float] | None = None
    gradient: Gradient = "exact"

    __repr__ = law_repr

    def __post_init__(self) -> None:
        check_rate("SaltAndPepper", "p", self.p)
        if self.levels is not None:
            numbers = (
                isinstance(self.levels, tuple) and len(self.levels) == 2 and all(map(math.isfinite, self.levels))
            )
            if not numbers or self.levels[0] >= self.levels[1]:
                raise OptionError(
                    f"SaltAndPepper(levels=...) must be (low, high) in this order, got {self.levels!r}."
                )
        check_choice("SaltAndPepper", "gradient", self.gradient, ("exact", "straight-through"))

    def draw(self, weight: Tensor) -> Tensor:
        """Numbers for its two events in the tensor's shape."""
        return draw_events(weight, weight.shape, self.p / 2)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        """The tensor with some of its values replaced."""
        if problem := self.factor_problem(factor):
            raise OptionError(problem)
        clean = weight if self.gradient == "exact" else weight.detach()
        low, high = extremes(clean, "tensor") if self.levels is None else map(clean.new_tensor, self.levels)
        if weight.numel() >= LARGE and _passes.can_apply(factor, weight, noise):
            return self._in_one_pass(weight, noise, factor, low, high)

        def replaced(clean: Tensor, noise: Tensor, low: Tensor, high: Tensor) -> Tensor:
            pepper, salt = event_mask(noise, self.p / 2, factor), event_mask(noise, self.p / 2, -factor)
            return torch.where(salt, high, torch.where(pepper, low, clean))

        noisy = by_pieces(replaced, clean, noise, low, high)
        return noisy if self.gradient == "exact" else straight_through(weight, noisy)

    def _in_one_pass(self, weight: Tensor, noise: Tensor, factor: float, low: Tensor, high: Tensor) -> Tensor:
        bottom, top = intervals(self.p / 2, factor)
        ends = (low, high) if factor >= 0 else (high, low)
        constants = (*bottom, number_of(ends[0].detach()), *top, number_of(ends[1].detach()))

        def make() -> Tensor:
            return _passes.apply(_passes.REPLACED, constants, weight, noise)

        if self.gradient != "exact":
            return make()

        def gradients(grad: Tensor, noise: Tensor) -> list[Tensor]:
            masks = [event_mask(noise, self.p / 2, sign * factor) for sign in (1.0, -1.0)]
            own = torch.where(masks[0] | masks[1], 0.0, grad)
            found = () if self.levels else masks  # Fixed levels have no gradient.
            return [own, *[torch.where(mask, grad, 0.0).sum().reshape(low.shape) for mask in found]]

        levels = () if self.levels else (low, high)
        return _passes.with_gradients(make, gradients, (noise,), weight, *levels)

    def factor_problem(self, factor: float) -> str | None:
        """Why ``p`` cannot be multiplied by ``factor``, or None."""
        return rate_problem(self, self.p, factor)


@dataclass(frozen=True)
class Scaled(Law):
    """One call of a law of activations: ``x + factor * scale * noise``."""

    scale: Tensor | float
    normal: bool

    @property
    def normal_draw(self) -> bool:  # type: ignore[override]
        """Whether they are normal."""
        return self.normal

    def draw(self, weight: Tensor) -> Tensor:
        """Standard normal numbers, or numbers uniform on [-1, 1]."""
        return _random.normal(weight) if self.normal else _random.symmetric_uniform(weight)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        """``x + factor * scale * noise``."""
        return weight + (noise * self.scale * factor).to(weight.dtype)


@dataclass(frozen=True)
class NEFTune(Law):
    r"""Noise on embeddings for fine-tuning: ``x + alpha / sqrt(L d) u`` with ``u ~ U(-1, 1)`` per element.

    L is the length of the sequence, d the width. Padding gets no noise and does not count in L: tokens
    equal to the embedding's ``padding_idx``, or what ``mask`` says. Use ``when="training"``, as its source
    does. Only on the output of `nn.Embedding`.

    Args:
        alpha: strength. 5 to 15 in the source.
        mask: from the token ids to a boolean tensor of the same shape, True for real tokens. A closure
            may return the attention mask of the batch.

    Raises:
        ValueError: for a strength that is negative or not finite.

    Example:
        >>> model = nn.Sequential(nn.Embedding(100, 16, padding_idx=0))
        >>> model = add_activation_noise(model, {nn.Embedding: NEFTune(5.0)}, when="training")
        >>> tokens = torch.tensor([[5, 7, 0]])
        >>> bool((model(tokens)[0, 2] == 0).all())
        True

    Source:
        Jain et al., NEFTune: noisy embeddings improve instruction finetuning, 2023, arXiv 2310.05914.
    """

    alpha: float = 5.0
    _: KW_ONLY
    mask: Callable[[Tensor], Tensor] | None = None

    __repr__ = law_repr

    def __post_init__(self) -> None:
        check_strength("NEFTune", "alpha", self.alpha)
        if self.mask is not None and not callable(self.mask):
            raise OptionError(f"NEFTune(mask=...) must be a function of the token ids, got {self.mask!r}.")

    def at(self, module: nn.Module, tokens: Tensor) -> Scaled:
        """The law for one call: its scale has the shape (..., L, 1), or is a number without padding."""
        assert isinstance(module, nn.Embedding)
        width = module.embedding_dim
        if self.mask is not None:
            real = self.mask(tokens)
        elif module.padding_idx is not None:
            real = torch.ne(tokens, module.padding_idx)
        else:
            return Scaled(
                self.alpha / math.sqrt(max(tokens.shape[-1] if tokens.ndim else 1, 1) * width), normal=False
            )
        real = real.to(torch.float32)
        lengths = real.sum(dim=-1, keepdim=True).clamp(min=1.0)
        return Scaled((self.alpha * real / (lengths * width).sqrt()).unsqueeze(-1), normal=False)

    def module_problem(self, module: nn.Module, at: str) -> str | None:
        """Why the law does not fit ``module``, or None."""
        return (
            None if isinstance(module, nn.Embedding) and at == "output" else "it is for the output of nn.Embedding"
        )


@dataclass(frozen=True)
class CurrentNoise(Law):
    r"""Shot noise of the currents that an analog layer adds up: ``y + sqrt(variance) e``, e standard normal.

    With the clean weights w and the inputs x of a Linear or Conv layer, sums over the inputs of an output::

        merged     variance = 0.1 (max |w| / current) sum |w| |x|
        external   variance = 0.1 (max |x| / current) sum (w^2 + |w|) |x|

    The variance is linear in the inputs, so this is no weight noise. Inputs are currents: their sizes
    count. The source has it in training and in evaluation. The gradient is that at the noisy output:
    the variance counts as a constant. A factor multiplies the standard deviation.

    Args:
        current: the largest current of an input, in nanoampere; 1 to 100 in the source. More is quieter.
        converter: ``"merged"``: the current-mode converter within the array; ``"external"``: one outside.

    Raises:
        ValueError: for a current that is not positive.

    Example:
        >>> model = add_activation_noise(nn.Linear(8, 4), CurrentNoise(10.0))
        >>> model(torch.rand(2, 8)).shape
        torch.Size([2, 4])

    Source:
        Klachko, Mahmoodi and Strukov, Improving noise tolerance of mixed-signal neural networks, 2019,
        arXiv 1904.01705.
    """

    current: float
    _: KW_ONLY
    converter: Literal["merged", "external"] = "merged"

    gradient = "straight-through"
    __repr__ = law_repr

    def __post_init__(self) -> None:
        check_strength("CurrentNoise", "current", self.current)
        if self.current == 0:
            raise OptionError("CurrentNoise(current=0) would be infinitely noisy; the current must be positive.")
        check_choice("CurrentNoise", "converter", self.converter, ("merged", "external"))

    def at(self, module: nn.Module, inputs: Tensor) -> Scaled:
        """The law for one call: its scale has the shape of the output."""
        with torch.no_grad(), precise_products(inputs):
            weight: Tensor = wide(module.weight)  # type: ignore[arg-type]
            size, sizes = weight.abs(), wide(inputs.detach()).abs()
            if self.converter == "merged":
                variance = layer_product(module, sizes, size) * size.max()
            else:
                variance = layer_product(module, sizes, weight.square() + size) * sizes.max()
            return Scaled((variance * (0.1 / self.current)).sqrt(), normal=True)

    def module_problem(self, module: nn.Module, at: str) -> str | None:
        """Why the law does not fit ``module``, or None."""
        if isinstance(module, PRODUCTS) and at == "output":
            return None
        return "it is for the output of nn.Linear, nn.Conv1d, nn.Conv2d and nn.Conv3d"
