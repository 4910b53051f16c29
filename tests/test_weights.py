"""Adding, removing and asking: the Parameter never moves, removal is exact, a failed call changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import weightnoise as wn
from tests.cases import CASES, LAWS, single_loss
from tests.helpers import in_forward, seen
from weightnoise.testing import assert_restores


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("case", CASES)
def test_adding_and_removing_restores_everything(case: str, law: str) -> None:
    assert_restores(CASES[case].model(), LAWS[law])


@pytest.mark.parametrize("case", CASES)
def test_training_and_removing_leaves_the_trained_plain_model(case: str) -> None:
    model = CASES[case].model()
    parameters, classes = list(model.parameters()), [type(module) for module in model.modules()]
    optimizer = torch.optim.Adam([p for p in parameters if p.requires_grad], lr=0.1)
    wn.add_weight_noise(model, 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        single_loss(model, CASES[case].batch()).backward()
        optimizer.step()
    trained = [p.detach().clone() for p in parameters]
    grads = [p.grad for p in parameters]
    wn.remove_weight_noise(model)
    assert all(now is before for now, before in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(now, before) for now, before in zip(model.parameters(), trained, strict=True))
    assert all(now.grad is before for now, before in zip(model.parameters(), grads, strict=True))
    assert [type(module) for module in model.modules()] == classes
    assert not wn.has_weight_noise(model)


@pytest.mark.parametrize("case", CASES)
def test_checkpoints_load_both_ways_and_optimizer_states_match(case: str) -> None:
    plain, noisy = CASES[case].model(0), wn.add_weight_noise(CASES[case].model(1), 0.1)
    noisy.load_state_dict(plain.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), noisy.parameters(), strict=True))
    CASES[case].model(2).load_state_dict(noisy.state_dict(), strict=True)
    assert [name for name, _ in noisy.named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_torch_sees_a_parametrized_module() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    assert parametrize.is_parametrized(model, "weight")
    assert not parametrize.is_parametrized(model, "bias")
    assert parametrize.type_before_parametrizations(model) is nn.Linear
    assert isinstance(model, nn.Linear)
    original = model.parametrizations.weight.original
    assert original is dict(model.named_parameters())["weight"]
    assert not torch.equal(in_forward(model.parametrizations.weight), original)  # type: ignore[arg-type]


def test_every_forward_draws_afresh_and_one_forward_draws_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.zeros(3, 3))

        def forward(self) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                first = self.matrix.clone()
            return first, self.matrix

    model = wn.add_weight_noise(Twice(), 0.1)
    first, second = model()
    assert torch.equal(first, second)
    assert second.requires_grad  # What was read under no_grad does not stand in for a read that needs a gradient.
    assert not torch.equal(model()[0], first)


def test_reads_are_fresh_draws_in_the_forward_of_another_module_and_the_parameter_elsewhere() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    assert not torch.equal(seen(model), seen(model))
    assert model.weight is model._parameters["weight"]


@pytest.mark.parametrize("case", CASES)
def test_adding_and_removing_draw_nothing(case: str) -> None:
    model = CASES[case].model()
    state = torch.get_rng_state()
    wn.remove_weight_noise(wn.add_weight_noise(model, 0.1))
    wn.plan_weight_noise(model, 0.1)
    assert torch.equal(torch.get_rng_state(), state)


def test_manual_seed_reproduces_a_run() -> None:
    model, x = wn.add_weight_noise(CASES["lstm"].model(), 0.1), CASES["lstm"].batch()
    outputs = []
    for _ in range(2):
        torch.manual_seed(5)
        outputs.append((model(x), model(x)))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])


def test_when_training_follows_the_mode_of_the_owner() -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), 0.1, when="training")
    assert not torch.equal(seen(model[0]), seen(model[0]))
    model.eval()
    assert model[0].weight is model[0]._parameters["weight"]
    model[1].train()
    assert model[0].weight is model[0]._parameters["weight"]
    assert seen(model[1]) is not model[1]._parameters["weight"]


def test_always_is_on_in_eval_mode() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2).eval(), 0.1)
    assert not torch.equal(seen(model), seen(model))


def test_when_is_checked() -> None:
    with pytest.raises(ValueError, match="must be one of 'always', 'training', got 'train'"):
        wn.add_weight_noise(nn.Linear(2, 2), 0.1, when="train")  # type: ignore[arg-type]


def test_bake_leaves_the_held_draw_in_the_same_parameter() -> None:
    model = wn.add_weight_noise(CASES["mlp"].model(), 0.1)
    parameters = list(model.parameters())
    with wn.hold_noise(model, seed=4):
        expected = model[0].weight.detach()
        wn.remove_weight_noise(model, bake=True)
    assert all(now is before for now, before in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model[0].weight, expected)


def test_bake_draws_even_while_noise_is_off() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2).eval(), 0.1, when="training")
    before = model.state_dict()["weight"].clone()
    wn.remove_weight_noise(model, bake=True)
    assert not torch.equal(model.weight, before)


def test_bake_gives_tied_uses_one_draw() -> None:
    model = wn.add_weight_noise(CASES["tied"].model(), 0.1)
    wn.remove_weight_noise(model, bake=True)
    assert model.head.weight is model.embed.weight


def test_bake_refuses_a_tensor_that_other_parametrizations_make() -> None:
    model = wn.add_weight_noise(parametrizations.weight_norm(nn.Linear(3, 2)), 0.1)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(wn.UnsupportedParameterError, match="bake=True cannot write 'weight'"):
        wn.remove_weight_noise(model, bake=True)
    assert wn.has_weight_noise(model)
    assert all(torch.equal(now, old) for now, old in zip(model.parameters(), before, strict=True))


def test_removing_from_a_model_without_noise_is_an_error() -> None:
    with pytest.raises(wn.NotNoisyError, match="carries no weight noise"):
        wn.remove_weight_noise(nn.Linear(2, 2))


def test_noisy_parameters_are_in_parameter_order() -> None:
    model = wn.add_weight_noise(CASES["lstm"].model(), wn.Uniform(0.1))
    names = [name for name, p in model.named_parameters() if p.ndim >= 2]
    assert list(wn.noisy_parameters(model)) == names
    assert set(wn.noisy_parameters(model).values()) == {wn.Uniform(0.1)}


def test_noise_can_be_added_in_two_calls_to_one_module() -> None:
    model = nn.Linear(3, 2)
    wn.add_weight_noise(model, 0.1)
    wn.add_weight_noise(model, {"bias": 0.2})
    assert wn.noisy_parameters(model) == {"weight": wn.Gaussian(0.1), "bias": wn.Gaussian(0.2)}
    assert not torch.equal(seen(model, "bias"), seen(model, "bias"))
    assert type(wn.remove_weight_noise(model)) is nn.Linear
    assert "parametrizations" not in model._modules


def test_modules_of_one_class_share_a_noisy_class() -> None:
    blocks = wn.add_weight_noise(nn.ModuleList([nn.Linear(2, 2) for _ in range(3)]), 0.1)
    assert len({type(block) for block in blocks}) == 1


def test_a_failure_at_the_last_site_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 3), parametrizations.weight_norm(nn.Linear(3, 3)), nn.LSTM(3, 3))
    register, calls = parametrize.register_parametrization, []

    def failing(module: nn.Module, name: str, *args: Any, **kwargs: Any) -> nn.Module:
        calls.append(name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return register(module, name, *args, **kwargs)

    before = [(type(m), list(m._parameters.items()), list(m._modules)) for m in model.modules()]
    monkeypatch.setattr(parametrize, "register_parametrization", failing)
    with pytest.raises(KeyboardInterrupt):
        wn.add_weight_noise(model, 0.1)
    monkeypatch.undo()
    assert len(calls) == 4
    after = [(type(m), list(m._parameters.items()), list(m._modules)) for m in model.modules()]
    assert [repr(x) for x in after] == [repr(x) for x in before]
    assert not wn.has_weight_noise(model)
    assert_restores(model, 0.1)


def test_a_failed_second_call_leaves_the_first_one() -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), {"0.weight": 0.1})
    with pytest.raises(wn.AlreadyNoisyError):
        wn.add_weight_noise(model, 0.2)
    assert wn.noisy_parameters(model) == {"0.weight": wn.Gaussian(0.1)}


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_a_failing_forward_leaves_nothing_stuck(failure: type[BaseException]) -> None:
    class Fails(nn.Linear):
        broken = True

        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            first = self.weight
            if self.broken:
                raise failure
            return first - self.weight

    model = wn.add_weight_noise(Fails(3, 2), 0.1)
    with pytest.raises(failure):
        model(torch.ones(1, 3))
    assert not torch.equal(seen(model), seen(model))  # The draw of the broken forward is gone.
    Fails.broken = False
    assert torch.equal(model(torch.ones(1, 3)), torch.zeros(2, 3))


def test_a_failing_draw_is_passed_on_and_leaves_nothing_stuck() -> None:
    class BrokenError(Exception):
        pass

    def broken(weight: Tensor) -> Tensor:
        raise BrokenError

    model = wn.add_weight_noise(nn.Linear(3, 2), wn.Custom(broken))
    with pytest.raises(BrokenError):
        model(torch.ones(1, 3))
    with wn.no_noise(model):
        assert model.weight is model._parameters["weight"]


def test_hooks_stay() -> None:
    model, calls = nn.Linear(3, 2), []
    model.register_forward_hook(lambda *args: calls.append("forward"))
    model._parameters["weight"].register_hook(lambda grad: calls.append("weight"))
    wn.add_weight_noise(model, 0.1)
    model(torch.ones(1, 3)).sum().backward()
    wn.remove_weight_noise(model)
    model(torch.ones(1, 3)).sum().backward()
    assert calls == ["forward", "weight"] * 2
