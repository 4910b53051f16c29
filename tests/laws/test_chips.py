"""What a chip freezes stays: over forwards, copies, devices, precisions, checkpointing and contexts."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.cases import CASES, LanguageModel, single_loss
from tests.helpers import seen

FAULTS = wn.StuckAt(0.3)


def make(law: Any = FAULTS) -> nn.Module:
    torch.manual_seed(0)
    return wn.add_weight_noise(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)), law)


def stuck(model: nn.Module) -> list[Tensor]:
    return [seen(model[i]) == 0 for i in (0, 2)]


@pytest.mark.parametrize("case", CASES)
def test_every_forward_sees_the_same_faults(case: str) -> None:
    model, x = wn.add_weight_noise(CASES[case].model(), FAULTS), CASES[case].batch()
    with wn.no_noise(model):
        clean = model(x)
    state = torch.get_rng_state()
    assert torch.equal(model(x), model(x))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(model(x), clean)


def test_faults_follow_the_number_of_the_chip_and_the_name_not_the_seed() -> None:
    first = stuck(make())
    torch.manual_seed(99)
    again, other = make(), make(wn.StuckAt(0.3, chip=1))
    assert all(torch.equal(a, b) for a, b in zip(stuck(again), first, strict=True))
    assert not torch.equal(stuck(other)[0], first[0])
    square = wn.add_weight_noise(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), FAULTS)
    assert not torch.equal(seen(square[0]) == 0, seen(square[1]) == 0)


@pytest.mark.parametrize(
    "way",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: model.double(),
        lambda model: model.half().float(),
        lambda model: model.to("cpu"),
        lambda model: model.eval(),
        lambda model: wn.add_weight_noise(wn.remove_weight_noise(model), FAULTS),
    ],
)
def test_copies_and_conversions_keep_the_faults(way: Callable[[nn.Module], nn.Module]) -> None:
    before = stuck(make())
    assert all(torch.equal(a, b) for a, b in zip(stuck(way(make())), before, strict=True))


def test_a_step_moves_the_weights_and_not_the_faults() -> None:
    model = make()
    before = stuck(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    single_loss(model, torch.randn(4, 6)).backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(stuck(model), before, strict=True))


def test_a_hold_puts_another_chip_in_place() -> None:
    model = make()
    own = stuck(model)
    found = []
    for seed in (1, 2, 1):
        with wn.hold_noise(model, seed=seed):
            found.append(stuck(model)[0])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], own[0])
    assert torch.equal(stuck(model)[0], own[0])
    with wn.hold_noise(model) as held:
        first = stuck(model)[0]
        held.reset()
        assert not torch.equal(stuck(model)[0], first)


def test_scaled_rates_take_more_or_fewer_of_the_same() -> None:
    model = make()
    few = stuck(model)[0]
    with wn.scale_noise(model, 2.0):
        many = stuck(model)[0]
    assert bool((many | ~few).all())
    assert many.sum() > few.sum()
    with wn.scale_noise(model, 0.0):
        assert not stuck(model)[0].any()


def test_read_noise_is_fresh_on_a_programmed_chip() -> None:
    model = make(wn.ProgrammingNoise(time=3600.0, chip=4))
    silent = make(wn.ProgrammingNoise(time=3600.0, chip=4, read=()))
    assert not torch.equal(seen(model[0]), seen(model[0]))
    assert torch.equal(seen(silent[0]), seen(silent[0]))
    # Reads scatter about what was programmed; 4 s.e. over 2000 reads.
    with torch.no_grad():
        reads = torch.stack([seen(model[0]) for _ in range(2000)]).double()
        error = reads.std(dim=0) / 2000**0.5
        assert bool(((reads.mean(dim=0) - seen(silent[0])).abs() < 5 * error + 1e-6).all())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_recomputes_with_the_same_chip(reentrant: bool) -> None:
    model, x = make([FAULTS, wn.Gaussian(0.1)]), torch.randn(4, 6, requires_grad=True)
    torch.manual_seed(3)
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.manual_seed(3)
    checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        assert_close(parameter.grad, grad)


def test_uses_of_a_tied_weight_are_stuck_alike_under_a_hold() -> None:
    model = wn.add_weight_noise(LanguageModel(), FAULTS)
    with wn.hold_noise(model, seed=0):
        assert torch.equal(model.embed.weight, model.head.weight)


def test_baking_programs_the_chip() -> None:
    model = make()
    expected = seen(model[0]).detach().clone()
    wn.remove_weight_noise(model, bake=True)
    assert torch.equal(model[0].weight, expected)


def test_on_a_stack_and_from_a_meta_device() -> None:
    stacked = wn.add_weight_noise(parametrizations.weight_norm(nn.Linear(6, 5)), FAULTS)
    assert torch.equal(seen(stacked) == 0, seen(stacked) == 0)
    assert (seen(stacked) == 0).any()
    with torch.device("meta"):
        model = nn.Linear(6, 5)
    wn.add_weight_noise(model, FAULTS)
    model.to_empty(device="cpu")
    nn.init.ones_(model._parameters["weight"])
    expected = wn.add_weight_noise(nn.Linear(6, 5), FAULTS)
    assert torch.equal(seen(model) == 0, seen(expected) == 0)


def test_state_dict_and_buffers_know_nothing_of_it() -> None:
    model, plain = make(), nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert list(model.named_buffers()) == []
