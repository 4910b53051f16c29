"""Noisy weights whose gradient goes to the clean ones as it comes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightnoise._torch.modes import in_dual_level, is_plain, runs_eagerly


def output_like(weight: Tensor) -> Tensor:
    """A tensor to write what is made of the weight into, past autograd; the gradient goes to the weight unchanged.

    To torch it is as new as a sum with the weight is, with a count of in-place changes of its own. A sum, only to
    be overwritten, is one more pass over a large weight. A view of the weight would have its part of the graph
    made again, for the memory that it has then, whenever one of the two is changed in place.
    """
    if (weight.requires_grad and torch.is_grad_enabled()) or in_dual_level():
        memory: Tensor = _beside(weight)  # type: ignore[no-untyped-call]
        return memory
    return torch.empty_like(weight)


def can_be_made_again(weight: Tensor) -> bool:
    """Whether a backward may make what the forward has made of the weight."""
    # Inference tensors do not tell whether they have changed, and checkpoints know no tangents.
    return not (weight.is_inference() or in_dual_level())


class _Beside(torch.autograd.Function):
    """Memory for a tensor of the shape of the weight, whose gradient is that of the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        """Nothing is written yet."""
        ctx.set_materialize_grads(False)
        return torch.empty_like(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensor | None:
        """All of it, in any layout; None where there is none."""
        return grads[0]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """All of it. A copy, as the result may be changed in place."""
        return None if tangents[0] is None else tangents[0].clone()


# As `_Beside.apply`, past the question whether a transformation is running, which takes longer than the rest.
_beside = super(torch.autograd.Function, _Beside).apply


class CleanRow(torch.autograd.Function):
    """A noisy embedding with one row of the clean one.

    The gradient of the row goes to the clean one; or, where a law hands its gradient on unchanged, all of it
    passes as it comes, so that sparse ones stay sparse.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(noisy: Tensor, weight: Tensor, row: int, split: bool) -> Tensor:
        """A copy: the law may have returned the weight itself, or need its result in the backward."""
        output = noisy.clone()
        output[row] = weight[row]
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """No tensor is kept."""
        ctx.row, ctx.split = inputs[2:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """To the noisy weight, and the row to the clean one."""
        grad = grads[0]
        if not ctx.split or grad.is_sparse:  # Of a lookup, which leaves the row out.
            return grad, None, None, None
        rest, own = grad.clone(), None
        rest[ctx.row] = 0.0
        if ctx.needs_input_grad[1]:
            own = torch.zeros_like(grad)
            own[ctx.row] = grad[ctx.row]
        return rest, own, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """From the noisy weight, and the row from the clean one."""
        tangent: Tensor = tangents[0].clone()
        if ctx.split:
            tangent[ctx.row] = 0.0 if tangents[1] is None else tangents[1][ctx.row]
        return tangent


class Identity(torch.autograd.Function):
    """A noisy weight that was made without a graph, with the gradient going to the clean one unchanged."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, noisy: Tensor) -> Tensor:
        """The noisy weight; a law may have returned the clean one. No view: it could not be changed in place."""
        return noisy.detach() if noisy is not weight else noisy.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """All of it goes to the clean weight."""
        return grads[0], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """All of it comes from the clean weight."""
        tangent: Tensor = tangents[0].clone()
        return tangent


# As `Identity.apply`, past the question with which arguments it was called, which takes four times as long.
_identity = super(torch.autograd.Function, Identity).apply


def handing_on(weight: Tensor, noisy: Tensor) -> Tensor:
    """A noisy weight that was made without a graph, with its gradient going to the clean one unchanged."""
    apply: Any = _identity if runs_eagerly() and is_plain(weight) and is_plain(noisy) else Identity.apply
    made: Tensor = apply(weight, noisy)
    return made


def storage_of(tensor: Tensor) -> int:
    """Return a mark of the memory of a tensor, for as long as it lives; fake tensors have no address."""
    number: int = tensor.untyped_storage()._cdata
    return number


Autocast: TypeAlias = tuple[str, bool, torch.dtype]


def autocast_of(weight: Tensor) -> Autocast:
    """Return the state of autocast for operations on the weight."""
    device = "cpu" if weight.is_cpu or weight.is_meta else weight.device.type
    return device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def under_autocast(then: Autocast) -> AbstractContextManager[Any]:
    """A context in which autocast does what it did then."""
    device, enabled, dtype = then
    if (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) == (enabled, dtype):
        return _NOTHING
    return torch.autocast(device, dtype, enabled)


_NOTHING = nullcontext()
