"""The hook that puts a law on what a module takes in or puts out."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from weightnoise._attach.activation_state import ActivationState, put_state, state_of, take_state
from weightnoise._attach.module_noise import clean_reads
from weightnoise._errors import UnsupportedActivationError, WeightNoiseError
from weightnoise._noise.checkpoints import EffectiveControl, Recalled, effective_control, fresh, held_draw
from weightnoise._noise.control import NoiseControl, When
from weightnoise._torch.export import refuse_export
from weightnoise._torch.layers import Layout, channels_of
from weightnoise._torch.modules import is_replica
from weightnoise._torch.tracing import outside_graphs
from weightnoise.laws import Law, Noise
from weightnoise.laws._complete import complete
from weightnoise.laws._converter import converters
from weightnoise.laws._law import apply_law
from weightnoise.laws._products import in_units

At: TypeAlias = Literal["output", "input"]


class ActivationNoise:
    """A law on what one module takes in or puts out: a forward hook, or pre-hook, of the module."""

    def __init__(self, law: Noise, name: str, at: At, when: When, module: nn.Module) -> None:
        self.law = law
        self.name = name
        self.at = at
        channels = channels_of(module, at)
        dim = None if channels is None else channels[0]
        layout = Layout(dim, None) if at == "output" else Layout(None, dim)
        self.handed = complete(law, self._place()).laid_out(layout)  # What is asked, and called with tensors.
        self.looks = self.handed.says("at")
        self.converter = next(iter(converters(self.handed)), None)
        self.in_units = in_units(self.handed)
        self.learns = False  # Whether the module has a state for it.
        self.control = NoiseControl(when)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any) -> Any:
        """The noisy output; as a pre-hook, which gets none, the noisy inputs."""
        effective = effective_control(self, module.training)
        if effective is None:
            return None
        refuse_export("activation", self.name, module)
        if effective.held is not None and not effective.held.kept and torch.compiler.is_compiling():
            return _outside(self, module, args, kwargs, *output)  # One graph more, in place of one for each call.
        if output:
            first = _first(args, kwargs)
            return self._replace(output[0], lambda value: self._noisy(value, effective, module, first))

        def noisy(value: Tensor) -> Tensor:
            return self._noisy(value, effective, module, value)

        if args:
            return (self._replace(args[0], noisy), *args[1:]), kwargs
        name = self._only_one(kwargs)
        return args, {**kwargs, name: self._replace(kwargs[name], noisy)}

    def _noisy(self, value: Tensor, effective: EffectiveControl, module: nn.Module, inputs: Any) -> Tensor:
        if not value.is_floating_point():
            raise UnsupportedActivationError(
                f"Noise on {self._place()} needs floating-point numbers and got {value.dtype}. Put the noise "
                "on the output of a module, or on the weights."
            )
        strengths = self._strengths(module, value, effective) if self.learns else {}
        law = self.handed
        if self.looks:

            def look() -> Law:
                return complete(self.handed.at(module, inputs), self._place())

            with clean_reads(module):
                law = fresh(effective, (self, "law"), look, numbers=False) if self.in_units else look()
        noise = self._draw(law, value, effective)
        factor = self.control.compiled_factor() if torch.compiler.is_compiling() else effective.factor
        return apply_law(law, value, noise, factor, strengths).to(value.dtype)  # Converted in a hold, say.

    def _strengths(self, module: nn.Module, value: Tensor, effective: EffectiveControl) -> dict[str, Tensor]:
        state: ActivationState = state_of(module, self.at)
        own: dict[str, Tensor] = state()
        if not value.is_meta and any(one.is_meta for one in own.values()):
            raise UnsupportedActivationError(
                f"What the law on {self._place()} has learned has no numbers: it is on the meta device. Load a "
                "checkpoint first."
            )
        compiling = torch.compiler.is_compiling()
        if state.measured and not compiling:
            state.keep_up()
        if state.settled and (compiling or not self.control.recomputing):
            return own
        now = (_ranges_untraced if compiling else _ranges)(self, module, value, effective)
        if now is None:
            return own
        return {name: now[name] + 0.0 * own[name] if own[name].requires_grad else now[name] for name in own}

    def watch(self, module: nn.Module, look: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """Let ``look`` have the tensor that would carry the noise, in each forward until the handle is removed."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any) -> None:
            found = [*output, *args]
            self._replace(found[0] if found else kwargs[self._only_one(kwargs)], look)

        if self.at == "output":
            return module.register_forward_hook(hook, with_kwargs=True)
        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def full_scale(self, module: nn.Module, like: Tensor) -> Tensor:
        """The range of the converter in the law."""
        assert self.converter is not None
        end, converter = self.converter
        strengths = {}
        if self.learns:
            state: ActivationState = state_of(module, self.at)
            state.require_ranges(self._place())
            strengths = state()
        return converter.full_scale(
            like, {"range": strengths[f"range{end}"]} if f"range{end}" in strengths else {}
        )

    def _draw(self, law: Law, value: Tensor, effective: EffectiveControl) -> Any:
        held = effective.held
        if held is None:
            return fresh(effective, self, lambda: law.draw(value))
        if held.reads is None and held.shape is not None and held.shape != value.shape:
            raise WeightNoiseError(
                f"hold_noise holds one draw of shape {tuple(held.shape)} for {self._place()}, "
                f"which now has the shape {tuple(value.shape)}. Keep the shape inside a hold (drop the last, "
                "smaller batch), open a hold for each shape, or call reset() on it."
            )
        return held_draw(effective, held, self, value, law)

    def _replace(self, value: Any, noisy: Any) -> Any:
        """``value`` with noise on its tensor: itself, its first item, or the only one that it has by name."""
        if isinstance(value, Tensor):
            return noisy(value)
        if isinstance(value, (tuple, list)) and value:
            kind: Any = type(value)
            items = [self._replace(value[0], noisy), *value[1:]]
            return kind._make(items) if hasattr(kind, "_make") else kind(items)
        if isinstance(value, Mapping):
            name = self._only_one(value)
            changed: Any = copy.copy(value)
            changed[name] = self._replace(value[name], noisy)
            return changed
        raise UnsupportedActivationError(
            f"Noise on {self._place()} needs a tensor, or a tuple or list that begins with one, and got a "
            f"{type(value).__name__}. Put the noise on one of its submodules."
        )

    def _only_one(self, values: Mapping[str, Any]) -> str:
        names = [name for name, value in values.items() if isinstance(value, Tensor) and value.is_floating_point()]
        if len(names) == 1:
            return names[0]
        raise UnsupportedActivationError(
            f"Noise on {self._place()} needs a single floating-point tensor among what comes by name, and got "
            f"{', '.join(map(repr, names)) or 'none'}. Put the noise on one of its submodules."
        )

    def _place(self) -> str:
        return f"the {self.at} of module '{self.name}'"

    def __repr__(self) -> str:
        return f"ActivationNoise({self.law!r}, at={self.at!r}, when={self.control.when!r})"


def _ranges(
    noise: ActivationNoise, module: nn.Module, value: Tensor, effective: EffectiveControl
) -> dict[str, Tensor] | None:
    """The ranges in a forward that sets them, and in its recomputation; None where they are what they are now."""
    state: ActivationState = state_of(module, noise.at)
    key = noise, "ranges"
    if state.settled and not (isinstance(effective, Recalled) and effective.noted(key)):
        return None
    if is_replica(module):
        raise UnsupportedActivationError(
            f"The converter on {noise._place()} would set its range in a replica of the model, which DataParallel "
            "throws away. Call weightnoise.calibrate_ranges(model, loader) before the model is wrapped."
        )
    look = functools.partial(state.starts, value, module.training, noise._place())
    return fresh(effective, key, look, numbers=False)


@outside_graphs
def _outside(noise: ActivationNoise, *given: Any) -> Any:
    """A read that makes what is held, under a lock and from a generator of its own: Dynamo knows neither."""
    return noise(*given)


@outside_graphs
def _ranges_untraced(
    noise: ActivationNoise, module: nn.Module, value: Tensor, effective: EffectiveControl
) -> dict[str, Tensor] | None:
    """The same for compiled code: ranges are written into the model, and it leaves that to Python."""
    if isinstance(effective_control(noise, module.training), Recalled):
        raise UnsupportedActivationError(
            f"The converter on {noise._place()} would set its range in compiled code in a checkpoint, which "
            "computes it again as other code. Call weightnoise.calibrate_ranges(model, loader) first."
        )
    return _ranges(noise, module, value, effective)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def register(module: nn.Module, noise: ActivationNoise, state: ActivationState | None) -> None:
    """Hook ``noise`` into ``module``, with what it learns there."""
    if state is not None:
        put_state(module, state)
        noise.learns = True
    if noise.at == "output":
        module.register_forward_hook(noise, with_kwargs=True)
    else:
        module.register_forward_pre_hook(noise, with_kwargs=True)


def unregister(module: nn.Module, at: At | None = None) -> None:
    """Take all activation noise, or that of one side, off ``module``, as if the hooks had never been there."""
    for dictionary, side in (("_forward_hooks", "output"), ("_forward_pre_hooks", "input")):
        hooks = getattr(module, dictionary) if at in (None, side) else {}
        for key in [key for key, hook in hooks.items() if isinstance(hook, ActivationNoise)]:
            noise: ActivationNoise = hooks.pop(key)
            noise.control.remove(noise.name)
            getattr(module, f"{dictionary}_with_kwargs").pop(key, None)
            take_state(module, noise.at)


def own_activation_noises(module: nn.Module) -> list[ActivationNoise]:
    """The activation noise of one module, inputs first."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return [hook for hook in hooks if isinstance(hook, ActivationNoise)]
