"""memory="recompute": the gradient of what is kept or a clear error, whatever is edited, exchanged or viewed."""

from __future__ import annotations

import contextlib
import gc
import random
import re
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks, save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.noise.test_recompute import keep_what_it_saves

# The second is drawn by the engine in C, where there is one.
sizes = pytest.mark.parametrize("size", [8, 64])

CLEAR = r"Parameter 'weight'.* has been changed in place since the forward.* or use memory='keep'\."


class Layer(nn.Module):
    """Two products with one weight; what else is done with it is given."""

    def __init__(self, size: int, use: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        y = x.tanh() if self.use is None else self.use(self, x)
        return (y @ self.weight).tanh() @ self.weight.T


class Shift:
    """A law of a user whose result depends on more than what it is given."""

    def __init__(self) -> None:
        self.by = 1.0

    def draw(self, weight: Tensor) -> Tensor:
        return torch.randn(weight.shape)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        return weight * (1.0 + noise * factor * self.by)


LAWS: dict[str, Callable[[int], Any]] = {
    "gaussian": lambda size: wn.Gaussian(0.3),
    "exact": lambda size: wn.Gaussian(0.3, relative_to="std", gradient="exact"),
    "log normal": lambda size: wn.LogNormal(0.3),
    "learned": lambda size: wn.LearnedGaussian(0.3),
    "protected": lambda size: wn.Protect(wn.DropConnect(0.5), 0.5, by=torch.randn(size, size)),
    "chip": lambda size: [wn.StuckAt(zero=0.3, chip=1), wn.Uniform(0.1)],
    "of a user": lambda size: Shift(),
    "deterministic": lambda size: wn.Custom(torch.relu),
}
laws = pytest.mark.parametrize("law", LAWS)


def outcome(
    law: Any,
    size: int,
    *,
    use: Any = None,
    between: Callable[[Any], object] = lambda layer: None,
    kept: bool = False,
    around: Any = contextlib.nullcontext,
) -> list[Tensor] | RuntimeError:
    """The gradients, or why there are none."""
    torch.manual_seed(0)
    layer = wn.add_weight_noise(Layer(size, use), law(size), memory="recompute")
    x = torch.randn(5, size, requires_grad=True)
    inputs = [x, owned(layer), *wn.learned_strengths(layer).values()]
    if kept:
        keep_what_it_saves(layer)
    torch.manual_seed(1)
    try:
        with around():
            loss = layer(x).square().sum()
        between(layer)
        loss.backward()
    except RuntimeError as error:
        return error
    return [tensor.grad for tensor in inputs if tensor.grad is not None]


def assert_same_or_clear(law: Any, size: int, **options: Any) -> None:
    expected = outcome(law, size, kept=True, **options)
    found = outcome(law, size, **options)
    if isinstance(found, RuntimeError):
        if not isinstance(expected, RuntimeError):
            with pytest.raises(RuntimeError, match=CLEAR):
                raise found
    elif not isinstance(expected, RuntimeError):
        for mine, other in zip(found, expected, strict=True):
            assert torch.equal(mine, other)


def owned(layer: Any) -> Tensor:
    weight: Tensor = layer._parameters["weight"]
    return weight


def noise_of(layer: Any) -> Any:
    return layer.parametrizations.weight[0]


# What a forward may do with the noisy weight.


def as_complex(layer: Any, x: Tensor) -> Tensor:
    turned = torch.view_as_complex(layer.weight.unflatten(1, (-1, 2)))
    product = x.to(turned.dtype) @ torch.cat([turned, turned.conj()], 1)
    return product.abs()


def conjugate(layer: Any, x: Tensor) -> Tensor:
    turned = torch.view_as_complex(layer.weight.unflatten(1, (-1, 2))).conj()
    return torch.cat([turned.real * turned.imag, turned.imag.square()], 1)[: len(x)] * x


def negative(layer: Any, x: Tensor) -> Tensor:
    return x @ torch._neg_view(layer.weight)


def of_another_dtype(layer: Any, x: Tensor) -> Tensor:
    bits = layer.weight.detach().view(torch.int32)
    return torch.where(bits.view(torch.bool)[:, :: bits.element_size()][: len(x)], x @ layer.weight, x)


def of_the_same_size(layer: Any, x: Tensor) -> Tensor:
    # A double saves a view of floats: x * (that view as numbers) saves it.
    halves = layer.weight.detach().view(torch.bfloat16)[: len(x), : len(x.T)].float()
    return x * halves.nan_to_num(0.0, 0.0, 0.0).clamp(-1.0, 1.0)


def of_a_part(layer: Any, x: Tensor) -> Tensor:
    return torch.cat([x[:, :3] @ layer.weight[1:4, ::2]] * 2, 1)


def of_results(layer: Any, x: Tensor) -> Tensor:
    return x @ (layer.weight * layer.weight) + x @ torch.softmax(layer.weight, dim=0)


def half_views(layer: Any, x: Tensor) -> Tensor:
    halves = layer.weight.detach().view(torch.bfloat16)
    product = x.to(torch.bfloat16) @ halves[:, : len(x.T)].nan_to_num_(0.0, 0.0, 0.0)
    return product.float().nan_to_num(0.0, 0.0, 0.0)


def edited(layer: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        layer.weight.mul_(2.0)
    return x @ layer.weight


def edited_in_a_part(layer: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        layer.weight[0].zero_()
    return x @ layer.weight


def edited_after_a_product(layer: Any, x: Tensor) -> Tensor:
    y = x @ layer.weight
    with torch.no_grad():
        layer.weight.mul_(2.0)
    return y


def edited_with_a_gradient(layer: Any, x: Tensor) -> Tensor:
    return x @ layer.weight.mul_(2.0)


def edited_through_data(layer: Any, x: Tensor) -> Tensor:
    layer.weight.data.mul_(2.0)
    return x @ layer.weight


def edited_through_data_after_a_product(layer: Any, x: Tensor) -> Tensor:
    y = x @ layer.weight
    layer.weight.data.mul_(2.0)
    return y


def exchanged(layer: Any, x: Tensor) -> Tensor:
    layer.weight.data = torch.ones(layer.weight.shape)
    y = x @ layer.weight
    for k in range(1, 9):  # New tensors of its size may lie where it was.
        y = y + (x @ (layer.weight * k).exp()).sigmoid()
    return y


def strided(layer: Any, x: Tensor) -> Tensor:
    size = len(x.T)
    return torch.cat([x @ layer.weight.as_strided((size, size // 2), (1, 2), start) for start in (0, 1)], 1)


def kept_results(layer: Any, x: Tensor) -> Tensor:
    return (x @ layer.weight.exp().sigmoid()).tanh()


def with_a_gradient_inside(layer: Any, x: Tensor) -> Tensor:
    return torch.autograd.grad((x @ layer.weight).square().sum(), x, create_graph=True)[0]


def sparse(layer: Any, x: Tensor) -> Tensor:
    return x @ torch.sparse.mm(torch.eye(len(x.T)).to_sparse(), layer.weight)


def autocast(layer: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y: Tensor = x @ layer.weight
    return y.float()


def in_a_checkpoint(layer: Any, x: Tensor) -> Tensor:
    product: Tensor = checkpoint(lambda x: edited_in_a_part(layer, x).tanh(), x, use_reentrant=False)
    return product


def in_a_reentrant_checkpoint(layer: Any, x: Tensor) -> Tensor:
    product: Tensor = checkpoint(lambda x: edited_in_a_part(layer, x).tanh(), x, use_reentrant=True)
    return product


SAVED_AS_THEY_ARE = [
    as_complex,
    conjugate,
    negative,
    of_another_dtype,
    of_the_same_size,
    edited,
    edited_in_a_part,
    exchanged,
    strided,
    sparse,
]
USES = [
    *SAVED_AS_THEY_ARE,
    of_a_part,
    of_results,
    half_views,
    edited_after_a_product,
    edited_with_a_gradient,
    edited_through_data,
    edited_through_data_after_a_product,
    kept_results,
    with_a_gradient_inside,
    autocast,
    in_a_checkpoint,
    in_a_reentrant_checkpoint,
]


@sizes
@laws
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context:FutureWarning")  # Of the reentrant checkpoint.
def test_what_a_forward_does_with_the_noisy_weight(use: Any, law: str, size: int) -> None:
    assert_same_or_clear(LAWS[law], size, use=use)


@sizes
@pytest.mark.parametrize("use", SAVED_AS_THEY_ARE, ids=lambda use: use.__name__)
def test_what_is_no_plain_view_is_saved_as_it_is(use: Any, size: int) -> None:
    assert not isinstance(outcome(LAWS["gaussian"], size, use=use), RuntimeError)


# What may happen between forward and backward.


def step(kind: type[Any], **options: Any) -> Callable[[Any], None]:
    def take(layer: Any) -> None:
        for parameter in layer.parameters():
            parameter.grad = torch.ones_like(parameter)
        kind(layer.parameters(), lr=0.1, **options).step()
        for parameter in layer.parameters():
            parameter.grad = None

    return take


def exchange(tensor: Tensor, other: Tensor) -> None:
    tensor.data = other


def in_place(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.add_(1.0)


def set_to_ones(layer: Any) -> None:
    with torch.no_grad():
        owned(layer).set_(torch.ones_like(owned(layer)))  # type: ignore[call-overload]


def load(layer: Any, *, assign: bool) -> None:
    layer.load_state_dict({name: value + 1.0 for name, value in layer.state_dict().items()}, assign=assign)


def assign(layer: Any) -> None:
    layer._parameters["weight"] = nn.Parameter(torch.ones_like(owned(layer)))


def swap_with_ones(layer: Any) -> None:
    with contextlib.suppress(RuntimeError):  # torch may refuse.
        torch.utils.swap_tensors(owned(layer), nn.Parameter(torch.ones_like(owned(layer))))


def to_and_back(layer: Any) -> None:
    layer.double()
    in_place(owned(layer))
    layer.float()


def free_and_reuse(layer: Any) -> None:
    size = owned(layer).shape
    exchange(owned(layer), torch.empty(0))
    exchange(owned(layer), torch.ones(size))


def with_strengths(edit: Callable[[Tensor], object]) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        for strength in wn.learned_strengths(layer).values():
            edit(strength)

    return change


def with_scores(edit: Callable[[Tensor], object]) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        if isinstance(noise_of(layer).law, wn.Protect):
            edit(noise_of(layer).law.by)

    return change


def another_chip(layer: Any) -> None:
    noise = noise_of(layer)
    if noise.chip_draw is not None:
        noise.chip_draw = (noise.law.laws[0].draw(owned(layer)), *noise.chip_draw[1:])


def of_the_frozen(edit: Callable[[Tensor], object]) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        frozen = noise_of(layer).chip_draw
        while isinstance(frozen, tuple):
            frozen = frozen[0]
        if frozen is not None:
            edit(frozen)

    return change


def more_shift(layer: Any) -> None:
    if isinstance(noise_of(layer).law, Shift):
        noise_of(layer).law.by = 3.0


def in_threads(layer: Any) -> None:
    thread = threading.Thread(target=lambda: layer(torch.ones(1, len(owned(layer)))))
    thread.start()
    thread.join()


def scaled(layer: Any) -> None:
    wn.NoiseScheduler(layer, lambda step: 0.5)


def enter(context: Any) -> Callable[[Any], None]:
    return lambda layer: context(layer).__enter__() and None


BETWEEN: dict[str, Callable[[Any], object]] = {
    "nothing": lambda layer: None,
    "in place": lambda layer: in_place(owned(layer)),
    "data in place": lambda layer: owned(layer).data.add_(1.0),
    "one number through NumPy": lambda layer: owned(layer).detach().numpy().__setitem__((0, 0), 7.0),
    "rolled through data": lambda layer: owned(layer).data.copy_(owned(layer).data.roll(1)),
    "rows exchanged through data": lambda layer: owned(layer).data.copy_(owned(layer).data.flip(0)),
    "data exchanged": lambda layer: exchange(owned(layer), owned(layer) + 1.0),
    "data transposed": lambda layer: exchange(owned(layer), owned(layer).data.T),
    "data freed and reused": free_and_reuse,
    "set_": set_to_ones,
    "load": lambda layer: load(layer, assign=False),
    "load, assign": lambda layer: load(layer, assign=True),
    "another Parameter": assign,
    "another weight": lambda layer: setattr(layer, "weight", nn.Parameter(owned(layer).detach() + 1.0)),
    "swap_tensors": swap_with_ones,
    "to another dtype and back": to_and_back,
    "frozen weight": lambda layer: owned(layer).requires_grad_(False),
    "strengths in place": with_strengths(in_place),
    "strengths through data": with_strengths(lambda strength: strength.data.add_(1.0)),
    "strengths exchanged": with_strengths(lambda strength: exchange(strength, strength + 1.0)),
    "scores in place": with_scores(lambda scores: scores.neg_()),
    "scores through data": with_scores(lambda scores: scores.data.neg_()),
    "scores exchanged": with_scores(lambda scores: exchange(scores, -scores)),
    "frozen draw in place": of_the_frozen(lambda draw: draw.neg_()),
    "frozen draw exchanged": of_the_frozen(lambda draw: exchange(draw, draw.flip(0))),
    "another chip": another_chip,
    "state of the law": more_shift,
    "SGD": step(torch.optim.SGD, foreach=False),
    "SGD, foreach": step(torch.optim.SGD, foreach=True),
    "SGD, fused": step(torch.optim.SGD, fused=True),
    "Adam, fused": step(torch.optim.Adam, fused=True),
    "AdamW, foreach": step(torch.optim.AdamW, foreach=True),
    "another forward": lambda layer: layer(torch.ones(1, len(owned(layer)))),
    "another forward in a thread": in_threads,
    "eval": lambda layer: layer.eval(),
    "scale_noise": enter(lambda layer: wn.scale_noise(layer, 1.5)),
    "no_noise": enter(wn.no_noise),
    "hold_noise": enter(lambda layer: wn.hold_noise(layer, seed=3)),
    "a schedule": scaled,
    "removal": wn.remove_weight_noise,
}
# Events that change nothing of what a recipe reads.
HARMLESS = {"nothing", "another weight", "another forward", "another forward in a thread", "eval", "a schedule"}
HARMLESS |= {"scale_noise", "no_noise", "hold_noise"}


@sizes
@laws
@pytest.mark.parametrize("between", BETWEEN)
def test_what_happens_between_forward_and_backward(between: str, law: str, size: int) -> None:
    assert_same_or_clear(LAWS[law], size, between=BETWEEN[between])
    if between in HARMLESS:
        assert isinstance(outcome(LAWS[law], size, between=BETWEEN[between]), list)


@sizes
@laws
@pytest.mark.parametrize("between", ["data in place", "SGD, fused", "strengths through data", "state of the law"])
def test_it_is_seen_too_where_the_weight_is_not_saved_by_the_layer(between: str, law: str, size: int) -> None:
    # Of a product with numbers that need no gradient the weight is not saved; the law's own gradient needs it.
    def run(kept: bool) -> list[Tensor] | RuntimeError:
        torch.manual_seed(0)
        layer = wn.add_weight_noise(nn.Linear(size, size, bias=False), LAWS[law](size), memory="recompute")
        if kept:
            keep_what_it_saves(layer)
        torch.manual_seed(1)
        loss = layer(torch.ones(2, size)).sum()
        parameters = list(layer.parameters())
        try:
            BETWEEN[between](layer)
            return list(torch.autograd.grad(loss, parameters))
        except RuntimeError as error:
            return error

    expected, found = run(True), run(False)
    if isinstance(found, RuntimeError):
        with pytest.raises(RuntimeError, match=CLEAR):
            raise found
    elif not isinstance(expected, RuntimeError):
        assert all(map(torch.equal, found, expected))


@sizes
@pytest.mark.parametrize(
    ("law", "between", "what"),
    [
        ("gaussian", "in place", "Parameter 'weight' has"),
        ("learned", "strengths exchanged", r"Parameter 'weight': its learned std\w* has"),
        ("protected", "scores in place", "Parameter 'weight': a tensor of its law Protect has"),
        ("chip", "frozen draw in place", "Parameter 'weight': its draw has"),
        (
            "gaussian",
            "SGD, fused",
            "Parameter 'weight', or something else that its noisy weight is made from, has",
        ),
    ],
)
def test_the_error_says_what_has_changed(law: str, between: str, what: str, size: int) -> None:
    error = outcome(LAWS[law], size, between=BETWEEN[between])
    assert isinstance(error, RuntimeError)
    assert re.match(what, str(error))
    assert str(error).endswith(
        "has been changed in place since the forward, so that its noisy weight cannot be made again. "
        "Change it after the backward, or use memory='keep'."
    )


@sizes
def test_the_error_names_a_parameter_as_the_model_does(size: int) -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(size, size)), 0.3, memory="recompute")
    loss = model(torch.ones(3, size, requires_grad=True)).sum()
    exchange(owned(model[0]), torch.zeros(size, size))
    with pytest.raises(RuntimeError, match=r"Parameter '0\.weight' has been changed in place since the forward"):
        loss.backward()


@sizes
def test_a_function_that_draws_where_torch_does_not_see_it(size: int) -> None:
    law = wn.Custom(lambda weight: weight * random.random())
    assert isinstance(outcome(lambda size: law, size), RuntimeError)


@sizes
@laws
def test_a_function_under_autocast(law: str, size: int) -> None:
    def with_product(size: int) -> Any:
        return [LAWS[law](size), wn.Custom(lambda weight: (weight @ weight.T).float(), gradient="exact")]

    around = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    expected, found = (outcome(with_product, size, around=around, kept=kept) for kept in (True, False))
    assert isinstance(expected, list)
    assert isinstance(found, list)
    assert all(map(torch.equal, found, expected))


AROUND: dict[str, Callable[[], Any]] = {
    "on the CPU": save_on_cpu,
    "clones": lambda: saved_tensors_hooks(torch.clone, torch.clone),
    "no hooks": lambda: disable_saved_tensors_hooks("not here"),  # The noisy weights are kept.
}


@sizes
@laws
@pytest.mark.parametrize("around", AROUND)
def test_other_hooks_around(around: str, law: str, size: int) -> None:
    assert_same_or_clear(LAWS[law], size, around=AROUND[around])
    assert isinstance(outcome(LAWS[law], size, around=AROUND[around]), list)


@sizes
@pytest.mark.parametrize("law", ["gaussian", "exact", "learned"])
def test_in_transformations(law: str, size: int) -> None:
    layer = wn.add_weight_noise(Layer(size), LAWS[law](size), memory="recompute")
    weights = {name: value.detach() for name, value in layer.named_parameters()}
    x = torch.randn(3, 2, size)
    with wn.hold_noise(layer, seed=0):
        found = torch.func.grad(lambda weights: torch.func.functional_call(layer, weights, (x,)).sum())(weights)
        layer(x).sum().backward()
        (gradient,) = (parameter.grad for parameter in layer.parameters() if parameter is owned(layer))
        assert gradient is not None
        assert torch.equal(found["weight"], gradient)
    assert torch.func.vmap(layer, randomness="different")(x).shape == x.shape
    assert torch.func.jacrev(layer)(x[0, 0]).shape == (size, size)


@sizes
def test_an_input_that_changed_is_an_error_as_it_is_of_a_plain_layer(size: int) -> None:
    def run(layer: nn.Module) -> None:
        x = torch.randn(3, size)
        loss = layer(x).sum()
        x.add_(1.0)
        loss.backward()

    for memory in ("keep", "recompute"):
        noisy = wn.add_weight_noise(nn.Linear(size, size), 0.1, memory=memory)
        with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
            run(noisy)


def test_a_graph_that_is_not_used_is_freed() -> None:
    layer = wn.add_weight_noise(Layer(8, kept_results), 0.1, memory="recompute")
    gc.disable()
    try:
        y = layer(torch.randn(3, 8))
        mark = Shift()
        y.grad_fn.metadata["mark"] = mark
        gone = weakref.ref(mark)
        del y, mark
        assert gone() is None
    finally:
        gc.enable()


@sizes
@laws
def test_backwards_again_in_parts_and_in_another_thread(law: str, size: int) -> None:
    def run(kept: bool) -> list[Tensor]:
        torch.manual_seed(0)
        layer = wn.add_weight_noise(Layer(size), LAWS[law](size), memory="recompute")
        if kept:
            keep_what_it_saves(layer)
        x = torch.randn(3, size, requires_grad=True)
        loss = layer(x).square().sum()
        found: list[Tensor] = []

        def backward(*inputs: Tensor, **options: Any) -> None:
            found.extend(torch.autograd.grad(loss, inputs, **options))

        backward(owned(layer), retain_graph=True)
        backward(x, owned(layer), create_graph=True)
        threads = [
            threading.Thread(target=backward, args=(owned(layer),), kwargs={"retain_graph": True})
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        penalty = found[1].square().sum() + found[2].square().sum()
        found.extend(torch.autograd.grad(penalty, [x, owned(layer)]))
        return found

    assert all(map(torch.equal, run(False), run(True)))
    assert len(run(False)) == 9


@sizes
def test_a_law_that_returns_memory_of_its_own(size: int) -> None:
    class Same:
        def draw(self, weight: Tensor) -> Tensor:
            return torch.randn(weight.shape)

        def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
            return noise.clone() if weight.requires_grad else noise

    assert_same_or_clear(lambda size: Same(), size)
