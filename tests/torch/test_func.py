"""torch.func, forward mode, torch.autograd.functional and inference mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import CASES
from tests.reference import held_weights, plain_copy_with

# torch's own, at the first use of forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

X = torch.linspace(-1.0, 1.0, 20).reshape(5, 4)

KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weights": lambda model: wn.add_weight_noise(model, 0.2),
    "relative": lambda model: wn.add_weight_noise(model, wn.Gaussian(0.2, relative_to="absmax", gradient="exact")),
    "drop connect": lambda model: wn.add_weight_noise(model, wn.DropConnect(0.3)),
    "learned": lambda model: wn.add_weight_noise(model, wn.LearnedGaussian(0.2)),
    "activations": lambda model: wn.add_activation_noise(model, 0.2),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def make(kind: str = "weights") -> nn.Module:
    return KINDS[kind](CASES["mlp"].model())


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def loss(model: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    output: Tensor = functional_call(model, parameters, (x,)).square().sum()
    return output


@kinds
def test_gradients_per_example_under_a_hold_are_those_of_each_example(kind: str) -> None:
    model = make(kind)
    x = X.unsqueeze(1)  # Examples as batches of one, so that a held draw of an activation has one shape.
    with wn.hold_noise(model, seed=0):
        model(x[0])  # A held draw of an activation is made by the first forward, which vmap would not let draw.
        found = vmap(grad(partial(loss, model)), (None, 0))(values(model), x)
        for place, example in enumerate(x):
            model.zero_grad()
            model(example).square().sum().backward()
            for name, parameter in model.named_parameters():
                assert_close(found[name][place], parameter.grad)


@kinds
def test_gradients_per_example_draw_for_all_or_for_each(kind: str) -> None:
    model = make(kind)
    x = X[:1].expand(5, 4).unsqueeze(1)  # Five times one example: what differs is the noise.
    per_example = grad(partial(loss, model))
    for randomness, count in (("same", 1), ("different", 5)):
        found = vmap(per_example, (None, 0), randomness=randomness)(values(model), x)
        rows = {tuple(row.flatten().tolist()) for row in found["2.bias"]}
        assert len(rows) == count, randomness
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(per_example, (None, 0))(values(model), x)


def test_each_gradient_of_a_different_draw_is_the_one_at_its_own_noisy_weights() -> None:
    model = wn.add_weight_noise(nn.Linear(4, 4, bias=False), 0.3)
    unit = torch.eye(4).expand(3, 4, 4)

    def output_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        pulled: Any = vjp(lambda x: torch.sin(model(x)), x)
        return pulled[0], pulled[1](torch.ones(4, 4))[0]

    outputs, found = vmap(output_and_gradient, randomness="different")(unit)
    drawn = [torch.asin(output).T for output in outputs.detach()]
    assert not torch.allclose(drawn[0], drawn[1])
    for weight, gradient in zip(drawn, found, strict=True):
        assert_close(gradient, torch.cos(weight.T) @ weight, rtol=1e-4, atol=1e-4)


@kinds
def test_jacobians_and_hessians_in_both_modes_are_those_at_the_held_draw(kind: str) -> None:
    model = make(kind).double()
    x = X[:1].double()
    with wn.hold_noise(model, seed=0):
        model(x)  # A held draw of an activation is made by the first forward.
        reverse, forward = jacrev(model)(x), jacfwd(model)(x)
        assert_close(forward, reverse)
        expected = torch.autograd.functional.jacobian(model, x)
        assert_close(reverse, expected)
        step = 1e-6
        moved = x.clone()
        moved[0, 1] += step
        assert_close(reverse[..., 0, 1], (model(moved) - model(x)) / step, rtol=1e-4, atol=1e-5)
        second = hessian(lambda x: model(x).square().sum())(x)
        assert_close(second, torch.autograd.functional.hessian(lambda x: model(x).square().sum(), x))
        assert second.abs().max() > 0


@kinds
def test_forward_mode_gives_the_directional_derivative_of_the_clean_parameters(kind: str) -> None:
    model = make(kind).double()
    x, given = X.double(), values(model)
    directions = {name: torch.ones_like(value) for name, value in given.items()}
    with wn.hold_noise(model, seed=0):
        model(x)
        both: Any = jvp(lambda p: functional_call(model, p, (x,)), (given,), (directions,))
        output, found = both
        assert_close(output, model(x))
        scalar = grad(partial(loss, model))(given, x)
        expected = sum((scalar[name] * directions[name]).sum() for name in given)
        assert_close((2 * output * found).sum(), expected)


def test_dual_numbers() -> None:
    model = make()
    with wn.hold_noise(model, seed=0):
        expected = jvp(model, (X,), (torch.ones_like(X),))[1]
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(X, torch.ones_like(X))
            tangent = forward_ad.unpack_dual(model(dual)).tangent
    assert tangent is not None
    assert_close(tangent, expected)


def test_functional_call_with_a_part_of_the_parameters_or_with_all() -> None:
    model = make()
    with wn.hold_noise(model, seed=0):
        expected = model(X)
        assert_close(functional_call(model, {"2.bias": model[2].bias + 1}, (X,)), expected + 1)
        assert torch.equal(functional_call(model, values(model), (X,), strict=True), expected)
        with pytest.raises(RuntimeError, match="Missing key"):
            functional_call(model, {"2.bias": torch.zeros(3)}, (X,), strict=True)
        assert torch.equal(model(X), expected)


def test_functional_call_inside_no_noise_is_the_plain_one() -> None:
    model, plain = make(), CASES["mlp"].model()
    given = {name: torch.randn_like(value) for name, value in values(model).items()}
    with wn.no_noise(model):
        assert torch.equal(functional_call(model, given, (X,)), functional_call(plain, given, (X,)))


@pytest.mark.parametrize("tie", [True, False])
def test_functional_call_with_tied_weights_tied_and_not(tie: bool) -> None:
    model, tokens = wn.add_weight_noise(CASES["tied"].model(), 0.2), CASES["tied"].batch()
    new = torch.randn(7, 5, requires_grad=True)
    with wn.hold_noise(model, seed=0):
        functional_call(model, {"head.weight": new}, (tokens,), tie_weights=tie).square().sum().backward()
    assert new.grad is not None
    rows = new.grad.abs().sum(dim=1) > 0
    assert rows.all()
    clean = dict(model.named_parameters())["embed.weight"]
    assert (clean.grad is None) is tie


def test_an_ensemble_shares_the_held_draw_of_the_module_that_is_called() -> None:
    models = [wn.add_weight_noise(CASES["mlp"].model(seed), 0.2) for seed in range(3)]
    parameters, buffers = stack_module_state(models)
    with wn.hold_noise(models[0], seed=0):
        found = vmap(lambda p: functional_call(models[0], p, (X,)))(parameters)
    assert buffers == {}
    for model, output in zip(models, found, strict=True):
        assert_close(output, plain_copy_with(model, held_weights(model, 0))(X))


@kinds
def test_inference_mode_and_training_after_it(kind: str) -> None:
    model = make(kind)
    with torch.inference_mode():
        first, second = model(X), model(X)
        assert first.is_inference()
        assert not torch.equal(first, second)
        with wn.hold_noise(model, seed=0):
            assert torch.equal(model(X), model(X))
        with wn.no_noise(model):
            assert torch.equal(model(X), model(X))
    model(X).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with wn.hold_noise(model, seed=0):
        output = model(X)
        assert not output.is_inference()
        output.sum().backward()


def test_a_hold_serves_inference_and_training() -> None:
    model = make()
    with wn.hold_noise(model, seed=0):
        with torch.inference_mode():
            found = model(X).clone()
        output = model(X)
        output.sum().backward()
    assert torch.equal(found, output)


def test_a_schedule_that_was_made_in_inference_mode_goes_on_outside_it() -> None:
    model = make()
    with torch.inference_mode():
        schedule = wn.NoiseScheduler(model, lambda step: float(step))
        schedule.step()
    schedule.step()
    assert schedule.factor == 2.0
    clean = dict(model.named_parameters())["0.weight"]
    with wn.hold_noise(model, seed=0):
        doubled = model[0].weight - clean
        with torch.inference_mode():
            schedule.step()
        assert_close(model[0].weight - clean, 1.5 * doubled)


def test_a_hold_that_is_entered_in_inference_mode_serves_for_gradients() -> None:
    model = make("relative")
    with wn.hold_noise(model, seed=0):
        expected = model(X).detach()
    hold = wn.hold_noise(model, seed=0)
    with torch.inference_mode():
        hold.__enter__()
    output = model(X)
    output.sum().backward()
    hold.__exit__(None, None, None)
    assert_close(output, expected, rtol=0, atol=0)


@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("size", [4, 100])  # Large weights have their noise from another generator.
@pytest.mark.parametrize("law", [wn.Gaussian(0.1), wn.Uniform(0.1), wn.DropConnect(0.1)], ids=str)
def test_fake_tensors_have_the_shapes_of_real_ones(law: wn.Noise, size: int, memory: Any) -> None:
    with FakeTensorMode():
        model = wn.add_weight_noise(nn.Linear(size, size), law, memory=memory)
        output = model(torch.ones(2, size))
        output.sum().backward()
    assert isinstance(output, FakeTensor)
    assert output.shape == (2, size)
    assert all(isinstance(p.grad, FakeTensor) for p in model.parameters())


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorized_jacobians_of_autograd(strategy: str) -> None:
    model = make()
    with wn.hold_noise(model, seed=0):
        found = torch.autograd.functional.jacobian(model, X, vectorize=True, strategy=strategy)
        assert_close(found, jacrev(model)(X))
