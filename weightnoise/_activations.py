"""Adding noise to activations, and removing it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Mapping, Sequence
from typing import TypeAlias, TypeVar

import torch
from torch import nn

from weightnoise._attach.activation_learning import group_problem, learned_shapes, learning_problem
from weightnoise._attach.activation_state import ActivationState, Shared
from weightnoise._attach.find import activation_noises
from weightnoise._attach.hook import (
    ActivationNoise,
    At,
    own_activation_noises,
    register,
    unregister,
)
from weightnoise._checks import check_choice, check_model
from weightnoise._errors import (
    AlreadyNoisyError,
    NoMatchError,
    NotNoisyError,
    UnsupportedActivationError,
    WeightNoiseError,
    raise_problems,
)
from weightnoise._noise.control import When
from weightnoise._select.choose import Law, choose
from weightnoise._select.patterns import Key, label, listed
from weightnoise._torch.modules import Node, distributed_wrapper, walk
from weightnoise.laws import Noise

ModuleT = TypeVar("ModuleT", bound=nn.Module)
ActivationSpec: TypeAlias = Law | Mapping[Key, Law | None] | Callable[[str, nn.Module], Law | None]

_LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def add_activation_noise(
    model: ModuleT, spec: ActivationSpec, *, at: At = "output", when: When = "always"
) -> ModuleT:
    """Put noise on what modules of ``model`` put out or take in; each call of a module draws anew.

    `no_noise`, `hold_noise`, `scale_noise`, `force_noise` and `NoiseScheduler` cover weights and
    activations together. Laws see the whole tensor, batch included: ``relative_to="std"`` is its standard
    deviation. Under `hold_noise` equal shapes see the same draw, and another shape is an error.

    The tensor that carries noise is the output itself; the first item of a tuple or list (the sequence
    of an LSTM, the output of an attention); the data of a packed sequence; the only floating-point
    tensor of a mapping. At the input it is the first positional argument, else the only floating-point
    tensor among the keywords. Anything else is an error in the forward that says so.

    What a law learns there, or measures as `Converter` does, is one number or one for each channel. It stands in a
    submodule of the module: ``0.activation_noise.output.strength``. See `learned_strengths`.

    Args:
        model: any module; it is changed in place, by hooks.
        spec: a number or a law or a list of laws, on every Linear and Conv; or a mapping: shell globs on
            full module names cover the Linear and Conv modules among those they match, exact names and
            classes cover any module, the first key that matches wins, ``None`` leaves clean; or a
            function ``(name, module) -> law or None``, asked for every module.
        at: ``"output"`` or ``"input"``; a model may have both, added one after the other.
        when: ``"always"``; or ``"training"``, only while the module is in training mode.

    Returns:
        The same model.

    Raises:
        TypeError: if ``model`` is no module.
        WeightNoiseError: with every problem found, before anything is changed: keys that match nothing
            or are shadowed (`NoMatchError`), things that are no laws (`SpecError`), noise already there
            (`AlreadyNoisyError`), modules or laws that do not fit (`UnsupportedActivationError`).

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> model = add_activation_noise(model, {nn.ReLU: Gaussian(0.1)})
        >>> model(torch.ones(1, 3)).shape
        torch.Size([1, 2])

    Source:
        Bishop, Training with noise is equivalent to Tikhonov regularization, 1995.
    """
    check_choice("add_activation_noise", "when", when, ("always", "training"))
    noises = chosen_modules("add_activation_noise", model, spec, at, when)
    shared: Shared = {}
    states = {node: _state(model, node.module, noise, shared) for node, noise in noises.items()}
    for node, noise in noises.items():
        register(node.module, noise, states[node])
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # Compiled code does not look for hooks that were added later.
    return model


def chosen_modules(
    call: str, model: nn.Module, spec: ActivationSpec, at: At, when: When = "always"
) -> dict[Node, ActivationNoise]:
    """The noise for each module that a spec covers; every problem is raised, and nothing is touched."""
    check_model(model)
    check_choice(call, "at", at, ("output", "input"))
    problems: list[WeightNoiseError] = []
    nodes = walk(model)
    never = _never_called(nodes)
    chosen = choose(
        nodes,
        spec,
        problems,
        noun="module",
        ask=lambda function, node: function(node.names[0], node.module),
        covers=lambda node, key: _is_meant(node, key) and node.module not in never,
        uncovered=_no_layer,
    )
    noises = {node: ActivationNoise(law, node.names[0], at, when, node.module) for node, law in chosen.items()}
    problems += _problems(never, noises, distributed_wrapper(model))
    if not chosen and not problems:
        problems.append(NoMatchError("The spec puts noise on no module. A law covers Linear and Conv modules."))
    raise_problems(problems)
    return noises


def layers(model: nn.Module) -> list[Node]:
    """The Linear and Conv modules that are called: those that a bare law covers."""
    nodes = walk(model)
    never = _never_called(nodes)
    return [node for node in nodes if _is_meant(node, None) and node.module not in never]


def remove_activation_noise(model: ModuleT, *, at: At | None = None) -> ModuleT:
    """Take activation noise off ``model``; other hooks stay as they are.

    Args:
        model: a model with activation noise; it is changed in place.
        at: ``"output"`` or ``"input"`` for one side alone; None for both.

    Returns:
        The same model.

    Raises:
        NotNoisyError: if the model carries no activation noise, or none at that side.

    Example:
        >>> model = remove_activation_noise(add_activation_noise(nn.Linear(3, 2), 0.1))
        >>> len(model._forward_hooks)
        0
    """
    check_model(model)
    check_choice("remove_activation_noise", "at", at, (None, "output", "input"))
    found = {module for _, module, noise in activation_noises(model) if at in (None, noise.at)}
    if not found:
        where = "" if at is None else f" at any {at}"
        raise NotNoisyError(f"The model carries no activation noise{where}: there is nothing to remove.")
    for module in found:
        unregister(module, at)
    return model


def noisy_activations(model: nn.Module) -> dict[tuple[str, At], Noise]:
    """The modules of ``model`` with activation noise, and the laws.

    Args:
        model: any module.

    Returns:
        From the full name of the module and ``"output"`` or ``"input"`` to the law.

    Example:
        >>> noisy_activations(add_activation_noise(nn.Sequential(nn.Linear(3, 2)), 0.1))
        {('0', 'output'): Gaussian(std=0.1)}
    """
    check_model(model)
    return {(name, noise.at): noise.law for name, _, noise in activation_noises(model)}


def _is_meant(node: Node, key: Key | None) -> bool:
    """Whether a key means a module that it does not name: a class all of its kind, anything else the layers."""
    return isinstance(node.module, key if isinstance(key, type) else _LAYERS)


def _no_layer(key: Key, won: Sequence[Node]) -> NoMatchError:
    return NoMatchError(
        f"{label(key)} covers no Linear or Conv module that is called, only "
        f"{listed(node.names[0] for node in won[:3])}. Name a module exactly, or use its class as the key."
    )


def _problems(
    never: Container[nn.Module], noises: Mapping[Node, ActivationNoise], wrapper: str | None
) -> list[WeightNoiseError]:
    problems: list[WeightNoiseError] = []
    for node, noise in noises.items():
        name, module, law, at = noise.name, node.module, noise.law, noise.at
        if any(other.at == at for other in own_activation_noises(module)):
            problems.append(
                AlreadyNoisyError(
                    f"The {at} of module '{name}' already has noise. Call remove_activation_noise(model) first."
                )
            )
        elif reason := _unsupported(module, noise, module in never, wrapper):
            problems.append(UnsupportedActivationError(f"{law!r} on the {at} of module '{name}': {reason}."))
    if reason := group_problem(noise.handed for noise in noises.values()):
        problems.append(UnsupportedActivationError(f"{reason}."))
    return problems


def _unsupported(module: nn.Module, noise: ActivationNoise, never_called: bool, wrapper: str | None) -> str | None:
    handed, at = noise.handed, noise.at
    if isinstance(module, torch.jit.ScriptModule):
        return "a ScriptModule takes no hooks"
    if never_called:
        return "nn.MultiheadAttention never calls it. Put the noise on the attention itself"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and at == "input":
        return "it takes in whole numbers. Use at='output'"
    if handed.freezes:
        return "what a chip freezes has a fixed shape, and activations have none. Use chip=None"
    if reason := handed.module_problem(module, at) or learning_problem(handed, module, at):
        return reason
    if wrapper and learned_shapes(handed, module, at):
        return f"{wrapper} has listed the Parameters that it synchronises. Add it before the model is wrapped"
    return None


def _state(model: nn.Module, module: nn.Module, noise: ActivationNoise, shared: Shared) -> ActivationState | None:
    """What the law learns and measures on the activations of one module; None for most laws."""
    if not (noise.handed.says("strengths") or noise.handed.says("given")):
        return None
    state = ActivationState(noise.law, noise.handed, module, noise.at)
    floating = (one for part in (module, model) for one in part.parameters() if one.is_floating_point())
    state.set_up(
        next(floating, torch.zeros((), dtype=torch.get_default_dtype(), device=torch.get_default_device())), shared
    )
    return state if state.strength_names else None


def _never_called(nodes: Sequence[Node]) -> set[nn.Module]:
    return {node.module.out_proj for node in nodes if isinstance(node.module, nn.MultiheadAttention)}
