"""Noise on the loss, and a penalty on the loss's gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from weightnoise._checks import check_choice, check_strength
from weightnoise._errors import OptionTypeError, WeightNoiseError, raise_problems
from weightnoise._random import draws as _random

Entry: TypeAlias = Tensor | Sequence[Tensor]
Tensors: TypeAlias = Tensor | Mapping[str, Entry] | Iterable[Entry]


def perturb_loss(loss: Tensor, std: float, *, relative: bool = False) -> Tensor:
    r"""Add noise to the loss: ``L + n`` with ``n ~ N(0, std^2)``, or ``L (1 + n)``.

    With g the gradient of the loss L:

    ============  ======================  ======================  =====================
    form          value                   gradient                the sign flips with
    ============  ======================  ======================  =====================
    absolute      ``L + n``               ``(1 + n / L) g``       ``Phi(-|L| / std)``
    relative      ``(1 + n) L``           ``(1 + n) g``           ``Phi(-1 / std)``
    ============  ======================  ======================  =====================

    The absolute form is ``L + n L / stop_gradient(L)``: with plain SGD a random learning rate, right on
    average; optimizers that divide by the size of the gradients undo part of a common factor. The factor
    has the standard deviation ``std / |L|``, so it diverges as the loss falls. At std 0.1 a step goes uphill
    with probability 0.001 at L = 0.3, 0.16 at 0.1, and 0.31 at 0.05; at L = 0.001 the step is some hundred
    times too long, one way or the other. The relative form has none of this. Where n / L is not finite, at
    L = 0 above all, the absolute form is an error.

    A loss of shape () has one n, which is one factor for the whole batch. A loss of any other shape
    has one n per element: per-sample losses (``reduction="none"``) get factors of their own.

    Args:
        loss: a floating-point tensor, before `backward`: a scalar, or per-sample losses.
        std: strength, in units of the loss (absolute) or as a fraction of it (relative).
        relative: choose the relative form.

    Returns:
        A new tensor like ``loss``. The numbers come from torch's global generator, as many for one
        std as for another; `hold_noise` does not hold them.

    Raises:
        TypeError: if ``loss`` is no tensor.
        ValueError: for a std that is negative or not finite; `WeightNoiseError` for a loss that is
            not of a floating-point dtype, for a NaN or infinite loss, and for an infinite factor.
            Looking at the values waits for an accelerator, breaks the graph of `torch.compile`, and
            is not possible under `torch.func.vmap`.

    Example:
        >>> loss = torch.tensor(2.0, requires_grad=True)
        >>> noisy = perturb_loss(loss, 0.1)
        >>> noisy.backward()
        >>> torch.allclose(loss.grad, noisy.detach() / 2.0)  # 1 + n / L
        True

    Source:
        The factor is that of ``L + n`` divided by L. A known relative that turns the sign on purpose
        is flooding: Ishida et al., Do we need zero training loss after achieving zero training
        error?, 2020, arXiv 2002.08709.
    """
    std = check_strength("perturb_loss", "std", std)
    check_choice("perturb_loss", "relative", relative, (False, True))
    _check_floating("perturb_loss", loss)
    noise = _random.normal(loss) * std
    value = loss.detach()
    # With std 0 both forms are the loss itself, also at 0.
    additive = not relative and std != 0
    deviation = noise / value if additive else noise
    if not bool((value.isfinite() & deviation.isfinite()).all()):
        raise WeightNoiseError(_unusable(value, deviation, std))
    return loss + noise * (loss / value) if additive else loss * (1 + noise)


def gradient_penalty(loss: Tensor, tensors: Tensors) -> Tensor:
    r"""The squared gradient of the loss, ``sum_t ||dL/dt||^2``, differentiable once more.

    Add a multiple of it to the loss and call `backward`: ``(loss + 0.1 * penalty).backward()``. It
    makes no forward of its own, so it sees the draw of weight noise that the loss was made with.
    Nobody's ``.grad`` is touched before that `backward`.

    What the tensors are decides what is flattened: activations from `record_activations`, inputs, or
    weights. The clean weights are ``model.parameters()``, noise on or not.

    With a loss that is a *mean* over the batch, each example's part of dL/da is 1/batch of what it
    would be alone, and the penalty on activations falls as 1/batch: multiply it by the batch size to
    keep its weight. On weights it falls to a limit: ``E ||mean g||^2 = ||E g||^2 + tr Cov(g) / batch`` for
    gradients g of single examples.

    Args:
        loss: one number, computed from the tensors, before its graph is freed.
        tensors: a tensor; a sequence of tensors; or a mapping from name to tensor or to a list of
            tensors, such as what `record_activations` yields or ``dict(model.named_parameters())``.
            A tensor that occurs twice counts once.

    Returns:
        A tensor of shape (), in the dtype of the gradients and at least float32. Inside
        `torch.no_grad` it is the value alone, with no graph.

    Raises:
        TypeError: if ``loss`` or one of ``tensors`` is no tensor.
        WeightNoiseError: for a loss that is not one number or has no graph, and, naming every one,
            for tensors that need no gradient or take no part in the loss.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> penalty = gradient_penalty(w.square().sum(), w)  # ||2 w||^2
        >>> penalty.item()
        20.0
        >>> penalty.backward()
        >>> w.grad
        tensor([ 8., 16.])

    Source:
        On inputs: Drucker and LeCun, Improving generalization performance using double
        backpropagation, 1992; on weights: Barrett and Dherin, Implicit gradient regularization,
        2021, arXiv 2009.11162.
    """
    _check_floating("gradient_penalty", loss)
    if loss.numel() != 1:
        raise WeightNoiseError(
            f"gradient_penalty(loss) must be one number, got shape {tuple(loss.shape)}. Reduce it: loss.mean()."
        )
    if not loss.requires_grad:
        raise WeightNoiseError(
            "gradient_penalty(loss) has no graph: it was computed under torch.no_grad(), is detached, or "
            "comes from an operation without a gradient, such as argmax. Compute it with gradients enabled."
        )
    named = _by_identity(tensors)
    raise_problems([WeightNoiseError(_CONSTANT.format(name=n)) for n, t in named.items() if not t.requires_grad])
    grads = torch.autograd.grad(
        loss, list(named.values()), create_graph=torch.is_grad_enabled(), retain_graph=True, allow_unused=True
    )
    by_name = dict(zip(named, grads, strict=True))
    raise_problems([WeightNoiseError(_UNUSED.format(name=n)) for n, grad in by_name.items() if grad is None])
    return torch.stack([_squared_norm(grad).to(loss.device) for grad in grads]).sum()


def _squared_norm(grad: Tensor) -> Tensor:
    # Wide enough for the squares: float16 loses those of numbers below 2e-4.
    wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
    return (torch.view_as_real(wide) if wide.is_complex() else wide).square().sum()


def _by_identity(tensors: Tensors) -> dict[str, Tensor]:
    """Each tensor once, by the name that an error calls it."""
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in _flat(tensors):
        if not isinstance(tensor, Tensor):
            raise OptionTypeError(f"gradient_penalty: {name} must be a tensor, got {type(tensor).__name__}.")
        if id(tensor) not in seen:
            seen.add(id(tensor))
            named[name] = tensor
    if not named:
        raise WeightNoiseError("gradient_penalty(tensors) is empty: there is nothing to penalise.")
    return named


def _flat(tensors: Tensors) -> Iterator[tuple[str, object]]:
    if isinstance(tensors, Tensor):
        yield "The tensor", tensors
        return
    if isinstance(tensors, nn.Module):
        raise OptionTypeError(
            "gradient_penalty(loss, tensors) got a module. Give module.parameters() for its weights, or what "
            "record_activations(module, ...) yields for its activations."
        )
    if not isinstance(tensors, Iterable):
        raise OptionTypeError(f"gradient_penalty(loss, tensors) must be tensors, got {type(tensors).__name__}.")
    is_mapping = isinstance(tensors, Mapping)
    for key, entry in tensors.items() if isinstance(tensors, Mapping) else enumerate(tensors):
        name = f"Tensor {key!r}" if is_mapping else f"tensors[{key}]"
        if not isinstance(entry, (list, tuple)):
            yield name, entry
        elif entry:
            yield from ((f"{name}[{index}]", tensor) for index, tensor in enumerate(entry))
        else:
            raise WeightNoiseError(_NEVER_CALLED.format(name=name))


def _check_floating(call: str, loss: object) -> None:
    if not isinstance(loss, Tensor):
        raise OptionTypeError(f"{call}(loss) must be a tensor, got {type(loss).__name__}.")
    if not loss.is_floating_point():
        raise WeightNoiseError(f"{call}(loss) must be of a floating-point dtype, got {loss.dtype}.")


def _unusable(value: Tensor, deviation: Tensor, std: float) -> str:
    if not bool(value.isfinite().all()):
        number = value[~value.isfinite()].flatten()[0].item()
        return f"perturb_loss(loss) must be finite, got {number}."
    number = value[~deviation.isfinite()].flatten()[0].item()
    return (
        f"perturb_loss(loss) got a loss of {number:g}, where the factor 1 + n / L of noise with std={std:g} is "
        "not finite. Use perturb_loss(loss, std, relative=True), or leave out the losses that are 0."
    )


_CONSTANT = (
    "{name} needs no gradient: it was made under torch.no_grad() (as in checkpoint(use_reentrant=True)), is "
    "detached or frozen, or holds whole numbers. Make it with gradients enabled, or leave it out."
)

_UNUSED = (
    "{name} takes no part in the loss, so there is no gradient to penalise. Give the very tensor that the loss "
    "was computed from (a read of a noisy `module.weight` makes another), or leave it out. Weights used inside "
    "checkpoint(use_reentrant=True) are cut off from the loss: pass use_reentrant=False."
)

_NEVER_CALLED = (
    "{name} is an empty list: the module has not been called since recording began. A module whose weights "
    "another one uses is never called (out_proj of MultiheadAttention), and a model that torch.compile had "
    "compiled before does not see new hooks. Record another module, or leave it out."
)
