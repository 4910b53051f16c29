"""Contexts that switch, hold and scale the noise of a model.

All four are of one kind: while one is open, its say lies on every noise of the model. What holds
is worked out from all that are open, so they nest and close in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ContextDecorator
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from torch import nn

from weightnoise import _random
from weightnoise._activation_noise import ActivationNoise, activation_noises
from weightnoise._errors import NotNoisyError, SpecError
from weightnoise._noise_module import WeightNoise
from weightnoise._parametrize import every_noise, noises
from weightnoise._slots import clean_tensor
from weightnoise._switch import HeldDraw, Setting
from weightnoise.laws import factor_problem_of

if TYPE_CHECKING:
    from typing_extensions import Self  # In typing from Python 3.11 on.

T = TypeVar("T")
AnyNoise: TypeAlias = WeightNoise | ActivationNoise


class NoiseContext(ContextDecorator):
    """A context manager, also usable as a decorator; it may be entered again while it is open.

    The noises are looked up on entry, so a context may be made before noise is added.
    """

    def __init__(self, open_settings: Callable[[], list[tuple[AnyNoise, Setting]]]) -> None:
        self._open_settings = open_settings
        self._opened: list[list[tuple[AnyNoise, Setting]]] = []

    def __enter__(self) -> Self:
        settings = self._open_settings()
        try:
            _open(settings)
            self._opened.append(settings)
            return self
        except BaseException:
            _close(settings)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        opened = self._opened.pop()
        try:
            _close(opened)
        except BaseException:  # An interrupt half-way: noise must not stay switched.
            _close(opened)
            raise


class HeldNoise(NoiseContext):
    """What `hold_noise` returns; inside, `reset` puts another draw in place."""

    def __init__(self, model: nn.Module, seed: int | None, sign: int) -> None:
        self._resets = 0

        def open_settings(resets: int = 0) -> list[tuple[AnyNoise, Setting]]:
            own = seed if seed is None or resets == 0 else _random.derive_seed(seed, f"reset {resets}")
            return held_settings(model, own, sign)

        super().__init__(open_settings)
        self._reopen = open_settings

    def __enter__(self) -> Self:
        self._resets = 0
        return super().__enter__()

    def reset(self) -> None:
        """Draw anew and hold that: a new episode, another chip. With a seed, the next of a reproducible series."""
        if not self._opened:
            raise RuntimeError("reset() is for use inside `with hold_noise(model) as held:`.")
        opened = self._reopen(self._resets + 1)
        mine = self._opened[-1]
        before = list(mine)
        mine += opened  # So that leaving closes them all, whatever happens here.
        _open(opened)
        _close(before)
        mine[:] = opened
        self._resets += 1


def no_noise(*models: nn.Module) -> NoiseContext:
    """Switch noise off inside: weights read are the clean Parameters themselves.

    Stronger than `force_noise`, whichever is the outer one. A model without noise is left alone, so
    that evaluation code need not know.

    Args:
        models: one or more modules; a submodule switches only its own part.

    Returns:
        A context manager, also usable as a decorator.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), 0.1)
        >>> with no_noise(model):
        ...     isinstance(model.weight, nn.Parameter)
        True
    """
    return NoiseContext(lambda: _on_each(chain.from_iterable(map(every_noise, models)), Setting(off=True)))


def force_noise(model: nn.Module) -> NoiseContext:
    """Switch noise on inside, also where ``when="training"`` and the module is in eval mode.

    Args:
        model: a module with weight noise.

    Returns:
        A context manager, also usable as a decorator. Entering it raises `NotNoisyError` for a
        model without noise.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), 0.1, when="training").eval()
        >>> with force_noise(model):
        ...     isinstance(model.weight, nn.Parameter)
        False
    """
    return NoiseContext(lambda: _on_each(some(every_noise(model)), Setting(forced=True)))


def scale_noise(model: nn.Module, factor: float) -> NoiseContext:
    """Multiply the strength of the noise inside; nested factors multiply.

    Args:
        model: a module with weight noise.
        factor: finite and not negative; 0 makes the noise zero (`no_noise` is cheaper).

    Returns:
        A context manager, also usable as a decorator. Entering it raises `NotNoisyError` for a
        model without noise.

    Raises:
        ValueError: for a factor that is negative or not finite; on entering, for one that makes the
            rate of a law larger than it can be.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), 0.1)
        >>> with scale_noise(model, 0.0):
        ...     bool((model.weight == model.weight).all())
        True
    """
    if not 0 <= factor < math.inf:  # Not math.isfinite, which Dynamo cannot trace.
        raise ValueError(f"scale_noise(factor=...) must be a finite number >= 0, got {factor!r}.")
    return NoiseContext(lambda: _on_each(some(every_noise(model)), Setting(scale=float(factor))))


def hold_noise(model: nn.Module, *, seed: int | None = None, sign: int = 1) -> HeldNoise:
    """Use one draw for everything inside: forwards, reads, and all uses of a tied parameter.

    The draw is the random part alone. The strength and what it is relative to are applied at each
    forward, so they follow an optimizer step, `scale_noise` and a schedule.

    Args:
        model: a module with weight noise.
        seed: makes the draw reproducible, in another process too, and leaves torch's random state
            untouched. Each parameter's draw depends on the seed and on its name alone. Without a
            seed the draw comes from torch's generator.
        sign: -1 for the exact mirror of the draw: the antithetic partner.

    Returns:
        A context manager, also usable as a decorator. Each entry makes its own draw (the same one
        for the same seed); the innermost of several wins. ``with hold_noise(model) as held:`` can
        draw anew inside with ``held.reset()``, as at the start of an episode. Entering it raises
        `NotNoisyError` for a model without noise.

    Raises:
        ValueError: for a seed that is no whole number and a sign that is neither 1 nor -1.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), 0.1)
        >>> with hold_noise(model, seed=0):
        ...     bool((model.weight == model.weight).all())
        True
    """
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise ValueError(f"hold_noise(seed=...) must be a whole number or None, got {seed!r}.")
    if isinstance(sign, bool) or sign not in (1, -1):
        raise ValueError(f"hold_noise(sign=...) must be 1 or -1, got {sign!r}.")
    return HeldNoise(model, seed, sign)


def _on_each(found: Iterable[AnyNoise], setting: Setting) -> list[tuple[AnyNoise, Setting]]:
    """One setting on all noises: one for each entry of a context, which may be entered again while it is open."""
    return [(noise, setting) for noise in found]


def _open(settings: list[tuple[AnyNoise, Setting]]) -> None:
    for noise, setting in settings:
        noise.switch.push(setting)
    problems = dict.fromkeys(factor_problem_of(noise.law, noise.switch.factor) for noise, _ in settings)
    if problems.keys() - {None}:
        raise SpecError(*(f"{problem}." for problem in problems if problem))


def _close(settings: list[tuple[AnyNoise, Setting]]) -> None:
    for noise, setting in settings:
        noise.switch.pull(setting)


def held_settings(model: nn.Module, seed: int | None, sign: int) -> list[tuple[AnyNoise, Setting]]:
    """What `hold_noise` lays on each noise of the model, its draws made."""
    some(every_noise(model))
    draws: dict[tuple[object, str], HeldDraw] = {}
    opened: list[tuple[AnyNoise, Setting]] = []
    for name, owner, noise in noises(model):
        parameter = owner._parameters.get(noise.tensor_name)
        # A held draw belongs to the Parameter; what a stack makes has no Parameter, but a name.
        key = (name if parameter is None else id(parameter), repr(noise.law))
        own_seed = None if seed is None else _random.derive_seed(seed, name)
        held = draws.setdefault(key, HeldDraw(own_seed, sign))
        # Now, and not at the first read: that may be in a checkpointed region or in compiled code.
        weight = clean_tensor(owner, noise.tensor_name)
        if weight is not None:
            held.take(noise.law, weight)
        if noise.estimator != "shared":
            held.make_key()
        opened.append((noise, Setting(held=held)))
    activations = list(activation_noises(model))
    if activations and seed is None:
        # Their shapes are not known yet. Seeded, their draws take nothing from torch's generator later on,
        # where a checkpointed region would miss it when it is computed again.
        seed = int(_random.key())
    for name, _, activation in activations:
        own_seed = _random.derive_seed(seed or 0, f"{activation.at} of {name}")
        opened.append((activation, Setting(held=HeldDraw(own_seed, sign))))
    return opened


def some(found: Iterable[T]) -> list[T]:
    """All that was found; an error where there is no noise."""
    listed = list(found)
    if not listed:
        raise NotNoisyError("The model carries no noise. Call add_weight_noise(model, spec) first.")
    return listed
