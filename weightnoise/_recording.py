"""Recording what modules of a model put out, as part of the graph."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from weightnoise._checks import check_model
from weightnoise._errors import SpecError, WeightNoiseError, raise_problems
from weightnoise._select.patterns import Key, is_key, matches, matches_name, no_match
from weightnoise._torch.legacy import skip_before_2_9
from weightnoise._torch.modes import in_backward
from weightnoise._torch.modules import Node, unwrap, walk

CallT = TypeVar("CallT", bound=Callable[..., Any])


@contextmanager
def record_activations(model: nn.Module, which: Key | Sequence[Key]) -> Iterator[dict[str, list[Tensor]]]:
    """Record the outputs of chosen modules inside, as tensors that the loss can be differentiated by.

    A recorded tensor is the module's own output: what is recorded stays as it is when the network
    goes on to change its activations in place (``nn.ReLU(inplace=True)``), and its gradient is dL/da
    for that output, whatever else its input is used for. The values that the network computes do
    not change. Each call costs two copies of the output.

    A module is a list of its calls: one tensor for each, in order, over all forwards inside. Forward
    passes that a backward runs again (activation checkpointing) are not recorded twice. Under
    `torch.no_grad` values are recorded, without a graph. With gradients enabled, an output that needs
    none (frozen layers, a first layer without weights) is recorded as a leaf that does.

    - The first tensor of a tuple or list is recorded: the sequence of an LSTM, the output of an
      attention without its weights. Anything else than tensors is an error in the forward.
    - Recording uses forward hooks, which switch off the fast path of `nn.TransformerEncoderLayer`.
    - `nn.MultiheadAttention` never calls its ``out_proj``; so nothing is recorded there.
    - What `torch.compile` has compiled does not see new hooks and is refused. A model that is
      compiled inside the context runs uncompiled where it is recorded (``fullgraph=True`` is an error).

    Args:
        model: any module, with weight noise or not.
        which: shell globs on the full names of submodules (``*`` crosses dots), module classes, or
            a sequence of those. The model itself has the name ``""`` and matches only that and its
            class. A module with several names is listed once, under the first that matches.

    Yields:
        From name to the list of outputs, in the order of the modules. It fills as the model is
        called, starts with empty lists, and stays yours after the context.

    Raises:
        TypeError: if ``model`` is no module.
        WeightNoiseError: with every problem found, on entry, before a hook is set: patterns and
            classes that match nothing (`NoMatchError`), keys that are neither (`SpecError`).

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
        >>> with record_activations(model, "0") as recorded:
        ...     loss = model(torch.ones(2, 3)).square().mean()
        >>> recorded["0"][0].shape
        torch.Size([2, 4])
        >>> penalty = gradient_penalty(loss, recorded)
    """
    chosen = _choose(model, which)
    recorded: dict[str, list[Tensor]] = {name: [] for name in chosen.values()}

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if torch.compiler.is_compiling():
            # Dynamo leaves this forward to Python then.
            skip_before_2_9(_FULLGRAPH)
            raise WeightNoiseError(_FULLGRAPH)
        name = chosen.get(module)
        if name is None:
            return None  # A copy of the module, which took the hook with it.
        activation, passed_on = _uncompiled(_branch_off)(output, name)
        if not in_backward():
            recorded[name].append(activation)
        return passed_on

    handles: list[RemovableHandle] = []
    try:
        for module in chosen:
            handles.append(module.register_forward_hook(hook))
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _uncompiled(call: CallT) -> CallT:
    """Keep Dynamo from compiling the call on its own, where it has left the code around it to Python."""
    if "torch._dynamo" not in sys.modules:  # Importing it takes seconds.
        return call
    left_alone: CallT = torch.compiler.disable(call)  # type: ignore[no-untyped-call]
    return left_alone


def _branch_off(output: Any, name: str) -> tuple[Tensor, Any]:
    """The tensor to record, and the output to go on with."""
    if isinstance(output, Tensor):
        # Two copies. The first parts the output from what shares its memory or is the same tensor, such
        # as the input of nn.Identity; the second is for the network to change in place.
        numeric = output.is_floating_point() or output.is_complex()
        if torch.is_grad_enabled() and numeric and not output.requires_grad:
            activation = output.detach().clone().requires_grad_()
        else:
            activation = output.clone()
        return activation, activation.clone()
    if isinstance(output, (tuple, list)) and output:
        kind: Any = type(output)
        activation, first = _branch_off(output[0], name)
        items = [first, *output[1:]]
        return activation, kind._make(items) if hasattr(kind, "_make") else kind(items)
    raise WeightNoiseError(_NO_TENSOR.format(name=name, kind=type(output).__name__))


def _choose(model: nn.Module, which: Key | Sequence[Key]) -> dict[nn.Module, str]:
    """The modules to record, with the names to list them under."""
    check_model(model)
    keys = [which] if isinstance(which, (str, type)) else list(which)
    nodes = walk(model)
    problems: list[WeightNoiseError] = [] if keys else [SpecError("which is empty. Name modules: which='*'.")]
    keys = [key for key in keys if is_key(key, problems)]
    problems += [no_match(key, nodes, "module") for key in keys if not any(matches(key, node) for node in nodes)]
    raise_problems(problems)
    chosen = {node.module: _listed_name(node, keys) for node in nodes if any(matches(key, node) for key in keys)}
    _refuse_compiled(model, nodes, chosen)
    return chosen


def _listed_name(node: Node, keys: Sequence[Key]) -> str:
    """The first name that a pattern fits, or the first of all for a module that its class has chosen."""
    if any(isinstance(key, type) and matches(key, node) for key in keys):
        return node.names[0]
    patterns = [key for key in keys if isinstance(key, str)]
    return next(name for name in node.names if any(matches_name(key, name) for key in patterns))


def _refuse_compiled(model: nn.Module, nodes: Sequence[Node], chosen: dict[nn.Module, str]) -> None:
    compiled = {
        name
        for node in nodes
        for name in node.names
        if unwrap(node.module) is not node.module or node.module._compiled_call_impl is not None
    }
    if unwrap(model) is not model:
        compiled.add("")
    for name in chosen.values():
        parts = name.split(".") if name else []
        if compiled.intersection(".".join(parts[:length]) for length in range(len(parts) + 1)):
            raise WeightNoiseError(_COMPILED.format(name=name))


_COMPILED = (
    "Module '{name}' belongs to what torch.compile made, which does not see new hooks and cannot be "
    "differentiated twice. Record and call the module that it was made from."
)

_FULLGRAPH = (
    "record_activations cannot be compiled into a graph. Compile without fullgraph=True, or call the module "
    "that is not compiled."
)

_NO_TENSOR = (
    "record_activations: module '{name}' returns {kind}, where a tensor, or a tuple or list whose first item is "
    "one, is needed. Record one of its submodules."
)
