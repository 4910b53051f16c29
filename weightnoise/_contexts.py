"""Contexts that switch, hold and scale the noise of a model.

All four are of one kind, `NoiseContext`, and differ in what they say about each noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain

from torch import nn

from weightnoise._attach.find import every_noise, find_noise
from weightnoise._checks import check_choice, check_count, check_sign, is_number, plain_number
from weightnoise._errors import OptionError, OptionTypeError
from weightnoise._holds import Reads, held_overrides, require_noise, weight_of
from weightnoise._noise.checkpoints import fresh_in_regions
from weightnoise._noise.context import AnyNoise, NoiseContext, Overrides
from weightnoise._noise.control import Override
from weightnoise._noise.held import HeldDraw
from weightnoise._noise.holding import HeldNoise
from weightnoise._random import seeds as _seeds


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


def hold_noise(
    model: nn.Module,
    *,
    seed: int | None = None,
    sign: int = 1,
    reads: Reads = "held",
    every: int | None = None,
    rho: float | tuple[float, ...] = 0.0,
) -> HeldNoise:
    """Use one draw for everything inside: forwards, reads, and all uses of a tied parameter.

    A read outside of every forward, which is clean elsewhere, is the held noisy weight: to look at a draw, or to
    call a method that uses a weight and is no forward.

    The draw is the random part alone. The strength and what it is relative to are applied at each
    forward, so they follow an optimizer step, `scale_noise` and a schedule. While gradients are off, each noisy
    weight is made once, and again when something that it is made from has changed; edits that torch does not
    count, through NumPy or the attribute ``data``, need a new hold. On the CPU it stands in the place of the draw,
    which is made again from the seed when it is needed: a hold takes the memory of one copy of the weights.

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
        every: after how many forwards of ``model`` time goes on by a step, as ``held.advance()`` makes it: what
            belongs to a reading is drawn anew then, or moves on by ``rho``, and the chip stays. Forwards of its
            parts by themselves are not counted, nor those of copies, nor what a checkpoint computes again. None
            for no time but that of ``advance``. Nothing is taken from torch's generator later than on entry.
        rho: the correlation of the noise of two steps in succession, from 0 to less than 1. Several are for the
            sum of AR(1) processes, which for ``(0.9, 0.99, 0.999)`` has nearly a 1/f spectrum over two decades.
            For laws that draw normal numbers, with ``estimator="shared"``.

    Returns:
        A context manager, also usable as a decorator. Each entry makes its own draw (the same one
        for the same seed); the innermost of several wins. ``with hold_noise(model) as held:`` can
        draw anew inside with ``held.reset()``, as at the start of an episode, and let time pass with
        ``held.advance(steps)``. Entering it raises `NotNoisyError` for a model without noise.

    Raises:
        ValueError: for a seed that is no whole number, a sign that is neither 1 nor -1, unknown reads, and times
            that do not fit them.

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
    every = every if every is None else check_count("hold_noise", "every", every, 1)
    rhos = _autocorrelations(every, rho, reads)

    def open_overrides(resets: int) -> Overrides:
        if seed is not None:
            own = seed if resets == 0 else _seeds.derive_seed(seed, f"reset {resets}")
            return held_overrides(find_noise(model), own, sign, reads, rhos)
        holds = fresh_in_regions("holds", drawn)
        return [(noise, Override(held=held)) for noise, held in holds]

    def drawn() -> list[tuple[AnyNoise, HeldDraw]]:
        # With a key, a forward that moves time on may be in a checkpoint.
        own = int(_seeds.key()) if every is not None or rhos else None
        found = held_overrides(find_noise(model), own, sign, reads, rhos)
        return [(noise, override.held) for noise, override in found if override.held is not None]

    return HeldNoise(open_overrides, weight_of, None if every is None else (model, every))


def _autocorrelations(every: int | None, rho: object, reads: Reads) -> tuple[float, ...]:
    """The autocorrelations; () where what comes a step later is independent."""
    rhos = tuple(map(plain_number, rho)) if isinstance(rho, (tuple, list)) else (plain_number(rho),)
    if not rhos or not all(is_number(one) and 0 <= one < 1 for one in rhos):
        raise OptionError(f"hold_noise(rho=...) must be a number from 0 to less than 1, or several, got {rho!r}.")
    if reads == "fresh" and (every is not None or any(rhos)):
        raise OptionError(
            "hold_noise(reads='fresh') draws anew in each forward of a layer, and knows no every and no rho. Use "
            "reads='held', and every=1 for a reading in each forward of the model."
        )
    return rhos if any(rhos) else ()


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


def only_noise(model: nn.Module, one: object) -> NoiseContext:
    """All noise of the model off inside, but for one."""
    off = Override(off=True)
    return NoiseContext(lambda: [(noise, off) for noise in every_noise(model) if noise is not one])
