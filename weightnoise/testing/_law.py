"""Everything the library expects of a law, checked on the law alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from weightnoise._contexts import hold_noise
from weightnoise._random import seeds as _seeds
from weightnoise._weights import add_weight_noise
from weightnoise.laws import Noise, sample
from weightnoise.laws._complete import complete
from weightnoise.testing._gradients import check_gradients
from weightnoise.testing._unbiased import assert_unbiased

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_law(
    law: Noise, weight: Tensor | None = None, *, unbiased: bool = True, linear: bool = True, seed: int = 0
) -> None:
    """Check that a law of your own keeps what holding, mirroring, scaling and training rely on.

    Shape and dtype stay, in four precisions. Draws come from torch's generators alone, and all
    randomness is in the draw: applying it twice gives the same bits, draws nothing and edits
    nothing. A factor that is a 0-dim tensor is taken as a number is. A seeded hold is reproducible.
    ``linear``: a doubled factor doubles the noise, factor 0 is the clean weight, factor -1 mirrors
    it. ``unbiased``: the mean is the clean weight. The gradients are those that ``law.gradient``
    declares (exact where it declares nothing), for the weight and for what the law learns.

    Args:
        law: the law.
        weight: a clean weight that the law fits; random numbers of shape (6, 8) where none is given.
        unbiased: what is declared of the mean; a law declared biased has to be found biased.
        linear: whether the noise is proportional to the factor, as additive noise is.
        seed: of the draws; torch's random state stays as it is.

    Raises:
        AssertionError: saying what does not hold.

    Example:
        >>> check_law(Gaussian(0.1, relative_to="absmax"))
        >>> check_law(Quantize(4), unbiased=False, linear=False)

    Source:
        Exact rescaling as a test of noise: the transformations of optax (DeepMind, 2020).
    """
    if weight is None:
        with _seeds.seeded(seed, torch.device("cpu")):
            weight = torch.randn(6, 8, dtype=torch.float64, device="cpu")
    weight = weight.detach().double()
    with _seeds.seeded(seed, weight.device):
        for dtype in _DTYPES:
            _check_shape(law, weight.to(dtype))
        _check_draw(law, weight)
        if linear:
            _check_factor(law, weight)
    if unbiased:
        assert_unbiased(law, weight, seed=seed)
    else:
        _check_biased(law, weight, seed)
    _check_on_a_model(law, weight, seed)
    with _seeds.seeded(seed, weight.device):
        _check_tensor_factor(law, weight)


def _expect(holds: bool, law: Noise, what: str) -> None:
    if not holds:
        raise AssertionError(f"{law!r}: {what}.")


def _check_shape(law: Noise, weight: Tensor) -> None:
    noisy = sample(law, weight)
    same = (noisy.shape, noisy.dtype) == (weight.shape, weight.dtype)
    _expect(
        same, law, f"a {weight.dtype} weight of shape {tuple(weight.shape)} became {noisy.dtype}, {noisy.shape}"
    )
    _expect(bool(noisy.isfinite().all()), law, f"a noisy {weight.dtype} weight is not finite")


def _check_draw(law: Noise, weight: Tensor) -> None:
    before = weight.clone()
    noise = law.draw(weight)
    _expect(not _requires_grad(noise), law, "draw returned something with a gradient")
    state = torch.get_rng_state()
    first = law.apply(weight, noise, 1.0).clone()
    _expect(torch.equal(weight, before), law, "the clean weight was edited in place")
    _expect(torch.equal(torch.get_rng_state(), state), law, "apply drew random numbers; draw them in draw")
    _expect(torch.equal(law.apply(weight, noise, 1.0), first), law, "the same draw, applied again, differs")
    torch.set_rng_state(state)
    again = sample(law, weight)
    torch.set_rng_state(state)
    _expect(
        torch.equal(again, sample(law, weight)), law, "random numbers come from elsewhere than torch's generators"
    )


def _check_factor(law: Noise, weight: Tensor) -> None:
    noise = law.draw(weight)
    once = law.apply(weight, noise, 1.0) - weight
    for factor in (2.0, 0.0, -1.0):
        moved = law.apply(weight, noise, factor) - weight
        close = torch.allclose(moved, factor * once, rtol=1e-9, atol=1e-12)
        _expect(close, law, f"a factor of {factor:g} does not give {factor:g} times the noise; see linear=False")


class _NoNumber(TorchFunctionMode):
    """Refuses what compiled code cannot do with a factor: make a number of Python of it, as an ``if`` does."""

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.factors = [factor]  # And what is computed from it alone.

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, unless it makes a number of a factor."""
        of_factor = any(arg is factor for arg in args for factor in self.factors)
        if of_factor and func in _NUMBERS:
            raise TypeError("it is made a number of Python, as by an if or by math")
        result = func(*args, **(kwargs or {}))
        if of_factor and isinstance(result, Tensor) and result.ndim == 0:
            self.factors.append(result)
        return result


_NUMBERS = (Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.item, Tensor.tolist)


def _check_tensor_factor(law: Noise, weight: Tensor) -> None:
    noise = law.draw(weight)
    for number in (0.5, -0.5):
        factor: Any = torch.tensor(number, dtype=torch.float32, device=weight.device)
        try:
            with _NoNumber(factor):
                found = law.apply(weight, noise, factor)
        except Exception as error:
            raise AssertionError(f"{law!r}: {_TENSOR_FACTOR}, and there is a {error!r}.") from error
        expected = law.apply(weight, noise, number)
        same = found.dtype == expected.dtype and torch.allclose(found, expected, rtol=1e-5, atol=1e-7)
        _expect(same, law, f"{_TENSOR_FACTOR}, and gives other numbers than a float")


_TENSOR_FACTOR = (
    "in compiled code under a NoiseScheduler the factor is a 0-dim tensor: multiply by it, and decide by it with "
    "torch.where"
)


def _check_biased(law: Noise, weight: Tensor, seed: int) -> None:
    try:
        assert_unbiased(law, weight, seed=seed)
    except AssertionError:
        return
    raise AssertionError(f"{law!r} is declared biased, but its mean is the clean weight.")


def _check_on_a_model(law: Noise, weight: Tensor, seed: int) -> None:
    model: Any = nn.Module()
    model.register_parameter("weight", nn.Parameter(weight.clone()))
    add_weight_noise(model, law, min_ndim=0)
    with hold_noise(model, seed=seed):
        first = model.weight.detach()
    with hold_noise(model, seed=seed):
        _expect(torch.equal(model.weight.detach(), first), law, "two holds of one seed differ")
    learned = complete(law).strengths(weight)
    _expect(len(list(model.parameters())) == 1 + len(learned), law, "what it learns is not among the Parameters")
    target = torch.linspace(-1.0, 1.0, weight.numel(), dtype=weight.dtype, device=weight.device)
    target = target.reshape(weight.shape)
    check_gradients(model, lambda model: (model.weight - target).square().sum(), seed=seed)


def _requires_grad(noise: Any) -> bool:
    if isinstance(noise, (tuple, list)):
        return any(map(_requires_grad, noise))
    return isinstance(noise, Tensor) and noise.requires_grad
