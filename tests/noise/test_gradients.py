"""The gradient is the one at the noisy weights, in every layer, and lands on the clean Parameter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import CASES, LAWS, ReadsTwice, single_loss
from tests.reference import clean_weights, held_weights, plain_copy_with
from weightnoise.testing import check_gradients

IN_PLACE = [name for name in CASES if name != "weight_norm"]


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("law", ["gaussian", "uniform", "gaussian_absmax", "custom_straight"])
@pytest.mark.parametrize("case", IN_PLACE)
def test_equals_the_gradient_of_a_copy_that_holds_the_noisy_weights(case: str, law: str) -> None:
    noisy = wn.add_weight_noise(CASES[case].model(), LAWS[law])
    x = CASES[case].batch()
    plain = plain_copy_with(noisy, held_weights(noisy, seed=3))
    with wn.hold_noise(noisy, seed=3):
        value = single_loss(noisy, x)
        value.backward()
    expected = single_loss(plain, x)
    expected.backward()
    assert torch.equal(value, expected)
    assert gradients(noisy).keys() == gradients(plain).keys()
    for name, gradient in gradients(plain).items():
        assert torch.equal(gradients(noisy)[name], gradient), name


@pytest.mark.parametrize("case", ["mlp", "conv", "lstm", "attention", "reads_twice", "tied", "float64"])
def test_equals_the_gradient_of_functional_call_on_weight_plus_noise(case: str) -> None:
    noisy = wn.add_weight_noise(CASES[case].model(), 0.1)
    plain, x = CASES[case].model(), CASES[case].batch()
    noise = {name: held_weights(noisy, 0)[name] - clean for name, clean in clean_weights(noisy).items()}
    leaves = dict(plain.named_parameters())
    moved = {name: leaf + noise[name] if name in noise else leaf for name, leaf in leaves.items()}
    output = functional_call(plain, moved, (x,), tie_weights=True)
    (output.square() + output.tanh()).mean().backward()
    with wn.hold_noise(noisy, seed=0):
        single_loss(noisy, x).backward()
    for name, gradient in gradients(plain).items():
        assert_close(gradients(noisy)[name], gradient)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("case", CASES)
def test_central_differences_agree(case: str, law: str) -> None:
    if case == "bfloat16" and law.startswith("custom"):
        pytest.skip("what it draws in bfloat16 differs from what it draws in the float64 copy")
    noisy = wn.add_weight_noise(CASES[case].model(), LAWS[law])
    entries = 3 if len(list(noisy.parameters())) <= 6 else 1  # Of the many, several have noise of one kind.
    check_gradients(noisy, single_loss, CASES[case].batch(), max_entries=entries)


def test_straight_through_and_exact_differ_where_the_scale_depends_on_the_weight() -> None:
    found = {}
    for gradient in ("straight-through", "exact"):
        model = nn.Linear(3, 2, bias=False)
        nn.init.constant_(model.weight, 0.5)
        law = wn.Gaussian(0.3, relative_to="value", gradient=gradient)
        wn.add_weight_noise(model, law)
        with wn.hold_noise(model, seed=0):
            weight = model.weight
            weight.sum().backward()
            found[gradient] = gradients(model)["weight"], weight.detach()
    straight, noisy = found["straight-through"]
    exact, _ = found["exact"]
    assert torch.equal(straight, torch.ones(2, 3))
    assert_close(exact, noisy / 0.5)  # d/dw of w (1 + s e)


def test_dropped_weights_get_no_gradient_and_kept_ones_are_rescaled() -> None:
    model = wn.add_weight_noise(nn.Linear(40, 30, bias=False), wn.DropConnect(0.25))
    with wn.hold_noise(model, seed=0):
        weight = model.weight
        weight.sum().backward()
    dropped = weight == 0
    grad = gradients(model)["weight"]
    assert torch.equal(grad[dropped], torch.zeros(int(dropped.sum())))
    assert_close(grad[~dropped], torch.full((int((~dropped).sum()),), 1 / 0.75))


def test_an_optimizer_step_moves_the_clean_weight_by_the_noisy_gradient() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.state_dict()["weight"].clone()
    with wn.hold_noise(model, seed=0):
        single_loss(model, torch.ones(1, 3)).backward()
    grad = gradients(model)["weight"]
    optimizer.step()
    assert torch.equal(model.state_dict()["weight"], before.add(grad, alpha=-0.1))


def test_gradients_accumulate_over_forwards_with_different_draws() -> None:
    model, x = wn.add_weight_noise(ReadsTwice(), 0.2), torch.randn(3, 4)
    single = []
    for seed in (0, 1):
        model.zero_grad()
        with wn.hold_noise(model, seed=seed):
            single_loss(model, x).backward()
        single.append(gradients(model)["matrix"])
    model.zero_grad()
    for seed in (0, 1):
        with wn.hold_noise(model, seed=seed):
            single_loss(model, x).backward()
    assert torch.equal(gradients(model)["matrix"], single[0] + single[1])


def test_double_backward_passes() -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(), 0.1)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    with wn.hold_noise(model, seed=0):
        assert torch.autograd.gradgradcheck(model, (x,))
