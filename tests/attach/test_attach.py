"""The Parameter stays where it is: for optimizers, checkpoints, functional calls and assignments."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from torch.nn.utils import parametrizations
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import CASES, single_loss
from tests.helpers import seen


@pytest.mark.parametrize("before", [True, False])
def test_an_optimizer_made_before_or_after_trains_the_same_parameters(before: bool) -> None:
    model = CASES["mlp"].model()
    if before:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    wn.add_weight_noise(model, 0.1)
    if not before:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    values = [p.detach().clone() for p in model.parameters()]
    single_loss(model, CASES["mlp"].batch()).backward()
    optimizer.step()
    assert all(not torch.equal(p, value) for p, value in zip(model.parameters(), values, strict=True))
    state = optimizer.state_dict()
    wn.remove_weight_noise(model)
    torch.optim.Adam(model.parameters(), lr=0.1).load_state_dict(state)
    assert set(optimizer.state) == set(model.parameters())


@pytest.mark.parametrize("assign", [True, False])
def test_loading_while_noise_is_on(assign: bool) -> None:
    model, other = wn.add_weight_noise(CASES["mlp"].model(0), 0.1), CASES["mlp"].model(1)
    model.load_state_dict(other.state_dict(), strict=True, assign=assign)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert wn.has_weight_noise(model)
    assert not torch.equal(seen(model[0]), seen(model[0]))


def test_a_new_parameter_can_be_assigned_and_a_tensor_cannot() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    new = nn.Parameter(torch.zeros(2, 3))
    model.weight = new
    assert model._parameters["weight"] is new
    assert model.weight is new
    assert not torch.equal(seen(model), new)
    for wrong in (torch.zeros(2, 3), seen(model)):
        with pytest.raises(TypeError, match="cannot assign"):
            model.weight = wrong
    assert wn.remove_weight_noise(model).weight is new


def test_a_noisy_tensor_is_not_written_back_through_other_parametrizations() -> None:
    model = wn.add_weight_noise(parametrizations.weight_norm(nn.Linear(3, 2)), 0.1)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="does not implement right_inverse"):
        model.weight = model.weight
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))


def test_a_recurrent_layer_takes_a_new_parameter() -> None:
    layer, new = wn.add_weight_noise(nn.LSTM(3, 2), 0.1), nn.Parameter(torch.zeros(8, 3))
    layer.weight_ih_l0 = new
    assert layer._flat_weights[0] is new
    layer(torch.ones(4, 1, 3))[0].sum().backward()
    assert new.grad is not None
    assert layer._flat_weights[0] is new
    assert wn.remove_weight_noise(layer).weight_ih_l0 is new


def test_edits_act_on_the_parameter_inside_no_noise() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    with wn.no_noise(model):
        nn.init.constant_(model.weight, 0.25)
        model.weight.requires_grad_(False)
    assert torch.equal(model._parameters["weight"], torch.full((2, 3), 0.25))
    assert not model.weight.requires_grad


def test_functional_call_takes_clean_names_and_puts_noise_on_what_it_is_given() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    weight = torch.zeros(2, 3, requires_grad=True)
    with wn.hold_noise(model, seed=0):
        output = functional_call(model, {"weight": weight}, (torch.eye(3),))
        noise = model.weight - model._parameters["weight"]
    assert_close(output.T - model.bias[:, None], noise)
    output.sum().backward()
    assert torch.equal(weight.grad, torch.ones(2, 3))
    assert model._parameters["weight"].grad is None


@pytest.mark.parametrize("kind", ["lstm", "attention", "tied"])
def test_functional_call_reaches_every_parameter(kind: str) -> None:
    model = wn.add_weight_noise(CASES[kind].model(), 0.1)
    given = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    functional_call(model, given, (CASES[kind].batch(),)).sum().backward()
    assert all(p.grad is not None for p in given.values())
    assert all(p.grad is None for p in model.parameters())


def test_ensembles_by_vmap() -> None:
    models = [wn.add_weight_noise(nn.Linear(3, 2), 0.1) for _ in range(4)]
    parameters, _ = stack_module_state(models)
    assert list(parameters) == ["weight", "bias"]

    def call(parameters: dict[str, Tensor]) -> Tensor:
        output: Tensor = functional_call(models[0], parameters, (torch.eye(3),))
        return output

    clean = torch.stack([model._parameters["weight"] for model in models])
    for randomness, count in (("different", 4), ("same", 1)):
        outputs = vmap(call, randomness=randomness)(parameters)
        noise = (outputs - parameters["bias"][:, None]).transpose(1, 2) - clean
        assert noise.std().item() > 0.03
        assert len({tuple(row.round(decimals=4).flatten().tolist()) for row in noise}) == count
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(call)(parameters)


def test_jacobians_and_gradients_per_example() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(4, 3)

    def output(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        result: Tensor = functional_call(model, parameters, (x,)).square()
        return result

    with wn.hold_noise(model, seed=0):
        jacobian = jacrev(output)(parameters, x)["weight"]
        assert jacobian.shape == (4, 2, 2, 3)
        single = vmap(grad(lambda p, x: output(p, x).sum()), (None, 0))(parameters, x)["weight"]
        single_loss = output(parameters, x).sum()
        model(x).square().sum().backward()
    assert_close(single.sum(dim=0), model._parameters["weight"].grad)
    assert single_loss.isfinite()


@pytest.mark.parametrize("read", [lambda m: hasattr(m, "weight"), lambda m: m.state_dict()])
def test_only_a_read_draws(read: Callable[[nn.Module], object]) -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    state = torch.get_rng_state()
    with wn.no_noise(model):
        read(model)
    list(model.named_parameters())
    model.state_dict()
    model.double().train().requires_grad_(True)
    repr(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_edits_through_the_module_reach_the_next_forward() -> None:
    model = wn.add_weight_noise(nn.LSTM(3, 2), 0.1)
    with wn.no_noise(model), torch.no_grad():
        model.weight_ih_l0.copy_(torch.zeros(8, 3))
        model.weight_hh_l0.mul_(0.0)
        model.bias_ih_l0.zero_()
        model.bias_hh_l0.zero_()
        assert torch.equal(model(torch.ones(4, 1, 3))[0], torch.zeros(4, 1, 2))
    assert torch.equal(wn.remove_weight_noise(model)(torch.ones(4, 1, 3))[0], torch.zeros(4, 1, 2))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.compile)])
def test_an_edit_between_two_reads_of_one_forward_reaches_the_second(compiled: bool) -> None:
    class Normalises(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            before = self.weight.abs().max()
            with wn.no_noise(self), torch.no_grad():
                self.weight.mul_(100.0)
            return self.weight.abs().max() / before

    model = wn.add_weight_noise(Normalises(3, 2), 0.001)
    call = torch.compile(model, backend="eager") if compiled else model
    assert call(torch.ones(1, 3)).item() > 90


def test_a_factor_that_changes_between_two_reads_of_one_forward_scales_the_same_draw() -> None:
    class Doubles(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            once = self.weight
            with wn.scale_noise(self, 2.0):
                twice = self.weight
            with wn.no_noise(self):
                return (twice - self.weight) / (once - self.weight)

    model = wn.add_weight_noise(Doubles(3, 2).double(), 0.1)
    torch.testing.assert_close(model(torch.ones(1, 3)), torch.full((2, 3), 2.0, dtype=torch.float64))


@contextmanager
def conversion(flag: str) -> Iterator[None]:
    getattr(torch.__future__, f"set_{flag}")(True)
    try:
        yield
    finally:
        getattr(torch.__future__, f"set_{flag}")(False)


@pytest.mark.parametrize("flag", ["overwrite_module_params_on_conversion", "swap_module_params_on_conversion"])
def test_conversions_that_replace_the_parameters(flag: str) -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(3, 2), nn.LSTM(2, 2)), 0.1)
    with conversion(flag):
        model.double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert list(model.state_dict()) == list(nn.Sequential(nn.Linear(3, 2), nn.LSTM(2, 2)).state_dict())
    x = torch.ones(4, 3, dtype=torch.float64)
    model(x)[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not torch.equal(model(x)[0], model(x)[0])


@pytest.mark.parametrize("removed", [True, False])
@pytest.mark.parametrize("case", ["mlp", "lstm", "attention", "tied", "reads_twice"])
def test_every_module_is_freed_by_its_last_reference(case: str, removed: bool) -> None:
    model = wn.add_weight_noise(CASES[case].model(), 0.1)
    with wn.hold_noise(model, seed=0):
        single_loss(model, CASES[case].batch()).backward()
    if removed:
        wn.remove_weight_noise(model)
    watched = [weakref.ref(part) for part in (*model.modules(), *model.parameters())]
    gc.disable()
    try:
        del model
        assert [ref() for ref in watched] == [None] * len(watched)
    finally:
        gc.enable()
