"""Small and large weights behave alike: torch draws for the first and the engine for the second."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils import _pytree as pytree

import weightnoise as wn
from tests.helpers import seen
from weightnoise._random import draws as _random
from weightnoise._random import philox as _engine

SIZES = [8, 64]  # 64 numbers and 4,096: on both sides of `_engine.LEAST`.
LAWS: dict[str, Any] = {
    "absolute": wn.Gaussian(0.1),
    "absmax per row": wn.Gaussian(0.1, relative_to="absmax", per=0),
    "exact": wn.Gaussian(0.1, relative_to="std", gradient="exact"),
    "uniform": wn.Uniform(0.1),
}
TOKENS = torch.tensor([[3, 7, 7, 0], [499, 3, 250, 1]])

each_size = pytest.mark.parametrize("size", SIZES)
each_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
each_straight_law = pytest.mark.parametrize(
    "law",
    [law for law in LAWS.values() if law.gradient == "straight-through"],
    ids=[name for name in LAWS if name != "exact"],
)
each_memory = pytest.mark.parametrize("memory", ["keep", "recompute"])


class Weight(nn.Module):
    """A square matrix, and a forward that says what to do with it."""

    def __init__(self, size: int, use: Callable[[Any, Tensor], Any], weight: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size) if weight is None else weight)
        self.use = use

    def forward(self, x: Tensor) -> Any:
        return self.use(self, x)


def clean(model: Any) -> Any:
    return model._parameters["weight"]


def product(model: Any, x: Tensor) -> Tensor:
    return x @ model.weight


# In-place changes, between the read and the backward.


def in_a_flat_buffer(size: int) -> tuple[Tensor, Tensor]:
    """Sharded optimizers have the Parameters of a group in one buffer; this one is not the first."""
    flat = torch.randn(3 * size * size + 5)
    return flat, flat[5 + size * size : 5 + 2 * size * size].view(size, size)


@each_memory
@each_straight_law
@each_size
def test_a_weight_in_a_flat_buffer_that_its_forward_clips(size: int, law: Any, memory: Any) -> None:
    def use(model: Any, x: Tensor) -> Tensor:
        wn.clip_weights(model, low=-0.5, high=0.5)
        first = model.weight
        wn.clip_weights(model, low=-0.4, high=0.4)
        return x @ first if memory == "keep" else x @ model.weight

    flat, part = in_a_flat_buffer(size)
    model = wn.add_weight_noise(Weight(size, use, part), law, memory=memory)
    before = flat.clone()
    model(torch.ones(1, size)).sum().backward()
    assert torch.equal(clean(model).grad, torch.ones(size, size))
    assert torch.equal(flat[: 5 + size * size], before[: 5 + size * size])
    assert torch.equal(flat[5 + 2 * size * size :], before[5 + 2 * size * size :])


@each_straight_law
@each_size
def test_a_step_between_forward_and_backward(size: int, law: Any) -> None:
    x = torch.randn(3, size, requires_grad=True)
    model = wn.add_weight_noise(Weight(size, product), law)
    found = []
    with wn.hold_noise(model):
        for edit in (False, True):
            x.grad = clean(model).grad = None
            output = model(x)
            if edit:
                with torch.no_grad():
                    clean(model).zero_()
            output.square().sum().backward()
            found.append((x.grad, clean(model).grad))
    for mine, expected in zip(*found, strict=True):
        assert torch.equal(mine, expected)


@each_size
def test_a_noisy_weight_that_is_edited(size: int) -> None:
    def use(model: Any, x: Tensor) -> Tensor:
        weight = model.weight
        weight.mul_(3.0)
        weight[0].zero_()
        return (x @ weight).sum()

    model = wn.add_weight_noise(Weight(size, use), 0.1)
    model(torch.ones(1, size)).backward()
    expected = torch.full((size, size), 3.0)
    expected[0] = 0.0
    assert torch.equal(clean(model).grad, expected)


@each_memory
@each_size
def test_a_noisy_weight_that_is_edited_and_recomputed(size: int, memory: Any) -> None:
    """A straight-through law whose noisy weight is made without a graph."""

    def use(model: Any, x: Tensor) -> Tensor:
        return model.weight.mul_(3.0).sum() * x.sum()

    model = wn.add_weight_noise(Weight(size, use), wn.Uniform(0.1), memory=memory)
    model(torch.ones(1)).backward()
    assert torch.equal(clean(model).grad, torch.full((size, size), 3.0))


@each_size
def test_edits_of_a_noisy_weight_leave_the_history_of_the_clean_one(size: int) -> None:
    model = wn.add_weight_noise(Weight(size, lambda model, x: model.weight.mul_(2.0).sum()), 0.1)
    base: Any = torch.randn(size, size, requires_grad=True)
    given = base * 1.5
    output = functional_call(model, {"weight": given}, torch.ones(1))
    (output + given.sum()).backward()
    assert torch.equal(base.grad, torch.full((size, size), 1.5 * (2 + 1)))


@each_size
def test_edits_of_a_clean_weight_with_history(size: int) -> None:
    def use(model: Any, x: Tensor) -> Tensor:
        noisy = model.weight
        clean(model)[0].mul_(5.0)
        return noisy.sum() + model._parameters["weight"].sum()

    model = wn.add_weight_noise(Weight(size, use), 0.1)
    base: Any = torch.randn(size, size, requires_grad=True)
    functional_call(model, {"weight": base * 1.0}, torch.ones(1)).backward()
    expected = torch.full((size, size), 2.0)
    expected[0] = 6.0
    assert torch.equal(base.grad, expected)


@each_size
def test_a_noisy_weight_counts_its_own_changes(size: int) -> None:
    model = wn.add_weight_noise(Weight(size, product), 0.1)
    with torch.no_grad():
        clean(model).mul_(1.0)
    noisy = seen(model)
    assert noisy._version == 0
    assert not noisy._is_view()
    assert noisy._base is None
    assert not noisy.is_leaf
    squared = noisy.square()
    noisy.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()


# Gradients of any kind.


@each_size
def test_sparse_gradients(size: int) -> None:
    def use(model: Any, x: Tensor) -> Tensor:
        return F.embedding(torch.tensor([1, 3]), model.weight, sparse=True)

    model = wn.add_weight_noise(Weight(size, use), 0.1)
    model(torch.ones(1)).sum().backward()
    assert clean(model).grad.is_sparse
    assert clean(model).grad.to_dense().sum() == 2 * size


@each_straight_law
@each_size
def test_second_derivatives(size: int, law: Any) -> None:
    model = wn.add_weight_noise(Weight(size, lambda model, x: model.weight.pow(3).sum()), law)
    with wn.hold_noise(model):
        noisy = model.weight.detach()
        (first,) = torch.autograd.grad(model(torch.ones(1)), clean(model), create_graph=True)
        first.sum().backward()
    assert_close(first, 3 * noisy.square())
    assert_close(clean(model).grad, 6 * noisy)


@each_size
def test_hooks_and_kept_gradients(size: int) -> None:
    model, seen = wn.add_weight_noise(Weight(size, product), 0.1), []
    noisy: Any = model.weight
    noisy.retain_grad()
    noisy.register_hook(lambda grad: seen.append(grad.clone()) or grad * 2)  # type: ignore[func-returns-value]
    noisy.sum().backward()
    assert torch.equal(seen[0], torch.ones(size, size))
    assert torch.equal(noisy.grad, torch.full((size, size), 2.0))
    assert torch.equal(clean(model).grad, torch.full((size, size), 2.0))


@each_size
def test_a_noisy_weight_without_a_gradient_leaves_none(size: int) -> None:
    class Dropped(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.sum()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> None:
            return None

    model = wn.add_weight_noise(Weight(size, lambda model, x: Dropped.apply(model.weight)), 0.1)
    model(torch.ones(1)).backward()
    assert clean(model).grad is None


# Forward-mode differentiation.


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@each_memory
@each_law
@each_size
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_tangents(size: int, law: Any, memory: Any, grad: bool) -> None:
    model = wn.add_weight_noise(Weight(size, lambda model, x: model.weight * 2), law, memory=memory)
    primal, direction = torch.randn(size, size, requires_grad=grad), torch.randn(size, size)
    with wn.hold_noise(model) if law.gradient == "exact" else nullcontext():
        model(torch.ones(1))  # A transformation would draw by torch's generator.
        with torch.set_grad_enabled(grad), forward_ad.dual_level():
            dual = forward_ad.make_dual(primal, direction)
            output = functional_call(model, {"weight": dual}, torch.ones(1))
            found = forward_ad.unpack_dual(output).tangent
        _, expected = torch.func.jvp(  # type: ignore[misc]
            lambda weight: functional_call(model, {"weight": weight}, torch.ones(1)),
            (primal.detach(),),
            (direction,),
        )
    assert found is not None
    assert_close(found, expected)
    assert law.gradient == "exact" or torch.equal(found, 2 * direction)


@pytest.mark.parametrize("width", [2, 40])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_tangents_of_rows(width: int) -> None:
    model = wn.add_weight_noise(nn.Embedding(500, width), wn.Gaussian(0.1, relative_to="absmax"))
    primal, direction = torch.randn(500, width), torch.randn(500, width)
    for _ in range(2):
        with forward_ad.dual_level():
            weight = nn.Parameter(primal)
            dual = forward_ad.make_dual(weight, direction)
            output = functional_call(model, {"weight": dual}, TOKENS)
            tangent = forward_ad.unpack_dual(output).tangent
        assert tangent is not None
        assert torch.equal(tangent, direction[TOKENS])


# Tensors that are not what they look like.


@each_memory
@each_straight_law
@each_size
def test_parameters_made_in_inference_mode(size: int, law: Any, memory: Any) -> None:
    with torch.inference_mode():
        model = Weight(size, product)
    wn.add_weight_noise(model, law, memory=memory)
    x = torch.ones(2, size)
    assert not torch.equal(model(x), model(x))
    model(x).sum().backward()
    assert torch.equal(clean(model).grad, torch.full((size, size), 2.0))


@pytest.mark.parametrize("width", [2, 40])
def test_embeddings_made_in_inference_mode(width: int) -> None:
    with torch.inference_mode():
        model = nn.Embedding(500, width)
    wn.add_weight_noise(model, 0.1)
    model(TOKENS).sum().backward()
    assert clean(model).grad.sum() == TOKENS.numel() * width


class Wrapper(Tensor):
    """Numbers that are elsewhere, without flattening: no memory of its own."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Wrapper:
        options: dict[str, Any] = {"dtype": held.dtype, "device": held.device}
        made: Any = Tensor._make_wrapper_subclass(cls, held.shape, **options)
        made.held = held.detach()
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        opened = pytree.tree_map(lambda value: value.held if isinstance(value, Wrapper) else value, args)
        found = func(*opened, **(kwargs or {}))
        return pytree.tree_map(lambda value: cls(value) if isinstance(value, Tensor) else value, found)


class Named(Tensor):
    """A subclass with memory of its own, which operations pass on."""


@each_law
@each_size
def test_wrapped_weights(size: int, law: Any) -> None:
    model = wn.add_weight_noise(Weight(size, lambda model, x: model.weight * 1), law)
    held = torch.randn(size, size)
    found = functional_call(model, {"weight": Wrapper(held)}, torch.ones(1))
    assert type(found) is Wrapper
    assert 0 < (found.held - held).abs().mean() < 1


@each_law
@each_size
def test_weights_of_a_subclass(size: int, law: Any) -> None:
    model = wn.add_weight_noise(Weight(size, lambda model, x: model.weight), law)
    weight = torch.randn(size, size).as_subclass(Named)
    found = functional_call(model, {"weight": weight}, torch.ones(1))
    assert type(found) is Named
    assert 0 < (found - weight).abs().mean() < 1


class OfMyOwn(nn.Parameter):
    """A subclass of Parameter, which operations do not pass on."""


@each_size
def test_parameters_of_a_subclass(size: int) -> None:
    model = Weight(size, product)
    model.weight = OfMyOwn(torch.randn(size, size))
    wn.add_weight_noise(model, 0.1)
    assert type(seen(model)) is Tensor
    model(torch.ones(2, size)).sum().backward()
    assert torch.equal(clean(model).grad, torch.full((size, size), 2.0))


def negative(size: int) -> Tensor:
    return torch._neg_view(torch.randn(size, size))


def misaligned(size: int) -> Tensor:
    count = size * size
    memory = bytearray(b"1" + torch.randn(count).numpy().tobytes())
    return torch.frombuffer(memory, dtype=torch.float32, offset=1).view(size, size)


ODD: dict[str, Callable[[int], Tensor]] = {
    "negative": negative,
    "misaligned": misaligned,
    "transposed": lambda size: torch.randn(size, size).T,
    "strided": lambda size: torch.randn(size, 2 * size)[:, ::2],
    "expanded": lambda size: torch.randn(size).expand(size, size),
    "zeros": lambda size: torch._efficientzerotensor((size, size)),
    "float64": lambda size: torch.randn(size, size, dtype=torch.float64),
    "bfloat16": lambda size: torch.randn(size, size, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
@each_size
def test_odd_memory(size: int, make: Callable[[int], Tensor]) -> None:
    weight = make(size)
    before = weight.clone()
    model = wn.add_weight_noise(Weight(size, lambda model, x: model.weight), 0.1)
    torch.manual_seed(1)
    found = functional_call(model, {"weight": weight}, torch.ones(1))
    torch.manual_seed(1)
    expected = functional_call(model, {"weight": before.contiguous()}, torch.ones(1))
    assert found.dtype == weight.dtype
    assert torch.equal(weight, before)
    assert_close(found, expected)
    assert (found - before).float().std().item() == pytest.approx(0.1, rel=0.3)


@each_size
def test_functional_tensors(size: int) -> None:
    model = wn.add_weight_noise(Weight(size, lambda model, x: model.weight), 0.1)
    weight = torch.randn(size, size)
    found = functional_call(model, {"weight": torch._to_functional_tensor(weight)}, torch.ones(1))
    torch._sync(found)  # type: ignore[attr-defined]
    plain = torch._from_functional_tensor(found)
    assert 0.05 < (plain - weight).std() < 0.2


@pytest.mark.skipif(_engine.engine() == "torch", reason="built without a C compiler, or switched off")
def test_a_weight_without_memory() -> None:
    model = wn.add_weight_noise(Weight(64, product), 0.1)
    clean(model).untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"shape \(64, 64\) has no memory now"):
        seen(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5,), (17,), (30, 10), (8, 8), (45, 45), (50, 50)])
@pytest.mark.parametrize("name", ["normal", "symmetric_uniform"])
def test_numbers_of_a_short_dtype_are_those_of_float32_rounded(
    name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    found = []
    for one in (dtype, torch.float32):
        torch.manual_seed(0)
        found.append(getattr(_random, name)(torch.empty(shape, dtype=one)))
    assert torch.equal(found[0], found[1].to(dtype))
