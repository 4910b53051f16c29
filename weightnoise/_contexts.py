"""Contexts that switch, hold and scale the noise of a model.

All four are of one kind, `NoiseContext`, and differ in what they say about each noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain
from typing import Literal, TypeAlias, TypeVar

from torch import nn

from weightnoise._attach.find import every_noise, noises
from weightnoise._attach.hook import activation_noises
from weightnoise._checks import check_choice, check_sign, plain_number
from weightnoise._errors import NotNoisyError, OptionError, OptionTypeError
from weightnoise._noise.context import AnyNoise, HeldNoise, NoiseContext, Overrides
from weightnoise._noise.control import Override
from weightnoise._noise.draws import HeldDraw
from weightnoise._random import seeds as _seeds
from weightnoise._select.candidates import clean_tensor

T = TypeVar("T")
Reads: TypeAlias = Literal["held", "fresh"]


def no_noise(*models: nn.Module) -> NoiseContext:
    """Switch noise off inside: forwards see the clean Parameters themselves.

    Stronger than `force_noise`, whichever is the outer one. A model without noise is left alone, so
    that evaluation code need not know.

    Args:
        models: one or more modules; a submodule switches only its own part.

    Returns:
        A context manager, also usable as a decorator.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), 0.1)
        >>> with no_noise(model):
        ...     bool((model(torch.ones(3)) == model(torch.ones(3))).all())
        True
    """
    _check_modules("no_noise", models, "*models")
    return NoiseContext(lambda: _on_each(chain.from_iterable(map(every_noise, models)), Override(off=True)))


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
        ...     bool((model(torch.ones(3)) == model(torch.ones(3))).all())
        False
    """
    _check_modules("force_noise", [model], "model")
    return NoiseContext(lambda: _on_each(require_noise(every_noise(model)), Override(forced=True)))


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
        ...     bool((model(torch.ones(3)) == model(torch.ones(3))).all())
        True
    """
    _check_modules("scale_noise", [model], "model, factor")
    factor = plain_number(factor)
    if not 0 <= factor < math.inf:  # Not math.isfinite, which Dynamo cannot trace.
        raise OptionError(f"scale_noise(factor=...) must be a finite number >= 0, got {factor!r}.")
    return NoiseContext(lambda: _on_each(require_noise(every_noise(model)), Override(scale=float(factor))))


def hold_noise(model: nn.Module, *, seed: int | None = None, sign: int = 1, reads: Reads = "held") -> HeldNoise:
    """Use one draw for everything inside: forwards, reads, and all uses of a tied parameter.

    A read outside of every forward, which is clean elsewhere, is the held noisy weight: to look at a draw, or to
    call a method that uses a weight and is no forward.

    The draw is the random part alone. The strength and what it is relative to are applied at each
    forward, so they follow an optimizer step, `scale_noise` and a schedule. While gradients are off, each noisy
    weight is made once, and again when something that it is made from has changed; edits that torch does not
    count, through NumPy or the attribute ``data``, need a new hold.

    Args:
        model: a module with weight noise.
        seed: makes the draw reproducible, in another process too, and leaves torch's random state
            untouched. Each parameter's draw depends on the seed and on its name alone. Without a
            seed the draw comes from torch's generator.
        sign: -1 for the exact mirror of the draw: the antithetic partner.
        reads: ``"held"`` for one draw of everything. ``"fresh"`` holds what belongs to the hardware, and draws
            anew in each forward what belongs to a reading: one chip, read many times. The hardware's are faults
            (`StuckAt`; `BitFlip` with a chip), programming and drift of `ProgrammingNoise`, all of `Frozen`, and
            what a law of yours declares by ``of_chip``; everything else is a reading's. With a seed, reading k
            of a parameter depends on the seed, the name and k; compiled code takes its readings from torch's
            generator. Activation checkpoints and the estimators flipout and local are refused.

    Returns:
        A context manager, also usable as a decorator. Each entry makes its own draw (the same one
        for the same seed); the innermost of several wins. ``with hold_noise(model) as held:`` can
        draw anew inside with ``held.reset()``, as at the start of an episode. Entering it raises
        `NotNoisyError` for a model without noise.

    Raises:
        ValueError: for a seed that is no whole number, a sign that is neither 1 nor -1, and unknown reads.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), 0.1)
        >>> with hold_noise(model, seed=0):
        ...     bool((model.weight == model.weight).all())
        True
    """
    _check_modules("hold_noise", [model], "model, ...")
    seed = plain_number(seed)
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise OptionError(f"hold_noise(seed=...) must be a whole number or None, got {seed!r}.")
    check_sign("hold_noise", sign)
    check_choice("hold_noise", "reads", reads, ("held", "fresh"))

    def open_overrides(resets: int) -> Overrides:
        own = seed if seed is None or resets == 0 else _seeds.derive_seed(seed, f"reset {resets}")
        return held_overrides(model, own, sign, reads)

    return HeldNoise(open_overrides)


def _check_modules(call: str, models: Iterable[object], how: str) -> None:
    for model in models:
        if not isinstance(model, nn.Module):
            one_by_one = (
                " Give them one by one: no_noise(*models)." if call == "no_noise" else " Open one for each."
            )
            hint = one_by_one if isinstance(model, (list, tuple)) else ""
            raise OptionTypeError(f"{call}({how}) takes a torch.nn.Module, got {type(model).__name__}.{hint}")


def _on_each(found: Iterable[AnyNoise], override: Override) -> Overrides:
    """One override on all noises: one for each entry of a context, which may be entered again while it is open."""
    return [(noise, override) for noise in found]


def held_overrides(model: nn.Module, seed: int | None, sign: int, reads: Reads = "held") -> Overrides:
    """Return the override that `hold_noise` adds to each noise of the model, with its draw made."""
    found = require_noise(every_noise(model))
    fresh = reads == "fresh"
    if fresh and seed is None:
        seed = int(_seeds.key())  # Readings are counted, and take nothing from torch's generator.
    count = 0 if fresh else None
    grouped = any(noise.handed.says("draw_of") for noise in found)
    die = (int(_seeds.key()) if seed is None else seed) if grouped else None
    draws: dict[tuple[object, str], HeldDraw] = {}
    opened: Overrides = []
    for name, owner, noise in noises(model):
        parameter = owner._parameters.get(noise.tensor_name)
        # A held draw belongs to the Parameter; what a stack makes has no Parameter, but a name.
        key = (name if parameter is None else id(parameter), repr(noise.law))
        own_seed = None if seed is None else _seeds.derive_seed(seed, name)
        weight = clean_tensor(owner, noise.tensor_name)
        if weight is not None and weight.is_meta and seed is None and key not in draws:
            own_seed = int(_seeds.key())  # It is drawn once the weight has numbers.
        held = draws.setdefault(key, HeldDraw(own_seed, sign, die=die, reads=count))
        # Now, and not at the first read: that may be in a checkpointed region or in compiled code.
        if weight is not None:
            held.make(noise.handed, weight)
        if fresh and noise.estimator != "shared":
            raise OptionError(_FRESH_READS.format(name=noise.name, estimator=noise.estimator))
        if noise.estimator != "shared":
            held.make_key()
        opened.append((noise, Override(held=held)))
    activations = list(activation_noises(model))
    if activations and seed is None:
        # Their shapes are not known yet. Seeded, their draws take nothing from torch's generator later on,
        # where a checkpointed region would miss it when it is computed again.
        seed = int(_seeds.key())
    for name, _, activation in activations:
        own_seed = _seeds.derive_seed(seed or 0, f"{activation.at} of {name}")
        opened.append((activation, Override(held=HeldDraw(own_seed, sign, reads=count))))
    return opened


_FRESH_READS = (
    "hold_noise(reads='fresh') holds a chip and reads it anew in each forward; parameter '{name}' has "
    "estimator={estimator!r}, whose noise is on the output of the layer. Add its noise with estimator='shared'."
)


def only_noise(model: nn.Module, one: object) -> NoiseContext:
    """All noise of the model off inside, but for one."""
    off = Override(off=True)
    return NoiseContext(lambda: [(noise, off) for noise in every_noise(model) if noise is not one])


def require_noise(found: Iterable[T]) -> list[T]:
    """All that was found; an error where there is no noise."""
    listed = list(found)
    if not listed:
        raise NotNoisyError("The model carries no noise. Call add_weight_noise(model, spec) first.")
    return listed
