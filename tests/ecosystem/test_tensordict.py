"""tensordict and torchrl: parameters swapped into a noisy module, and losses with noisy networks."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import weightnoise as wn

pytest.importorskip("tensordict")
SIZES = [8, 64]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("preserve", [True, False])
def test_swapped_parameters_get_the_noise(preserve: bool, size: int) -> None:
    from tensordict import TensorDict

    model = wn.add_weight_noise(nn.Sequential(nn.Linear(size, size, bias=False)), 0.5)
    names = list(model.state_dict())
    swapped = TensorDict.from_module(model).data.clone().zero_()
    x = torch.eye(size)
    with swapped.to_module(model, preserve_module_state=preserve):
        assert not torch.equal(model(x), model(x))
        assert 0.4 < model(x).std() < 0.6
        with wn.no_noise(model):
            assert torch.equal(model(x), torch.zeros(size, size))
    assert list(model.state_dict()) == names
    assert not torch.equal(model(x), model(x))
    assert type(wn.remove_weight_noise(model)[0]) is nn.Linear


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("delay", [True, False])
def test_a_dqn_loss_with_a_noisy_network(delay: bool, size: int) -> None:
    pytest.importorskip("torchrl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensordict import TensorDict
        from torchrl.data import OneHot
        from torchrl.modules import QValueActor
        from torchrl.objectives import DQNLoss

        network = nn.Sequential(nn.Linear(4, size), nn.ReLU(), nn.Linear(size, 2))
        wn.add_weight_noise(network, 0.1)
        actor = QValueActor(network, in_keys=["observation"], action_space="one-hot", spec=OneHot(2))
        loss = DQNLoss(actor, action_space="one-hot", delay_value=delay)
        ended = torch.zeros(5, 1, dtype=torch.bool)
        after = {"observation": torch.randn(5, 4), "reward": torch.randn(5, 1), "done": ended, "terminated": ended}
        batch: Any = TensorDict(
            {"observation": torch.randn(5, 4), "action": torch.eye(2)[[0, 1, 0, 1, 1]].bool(), "next": after}, [5]
        )

        def value() -> torch.Tensor:
            found: torch.Tensor = loss(batch)["loss"]
            return found

        assert value() != value()
        with wn.hold_noise(network, seed=1):
            assert value() == value()
        with wn.no_noise(network):
            assert value() == value()
        value().backward()  # type: ignore[no-untyped-call]
        assert all(parameter.grad is not None for parameter in network.parameters())
        x = torch.ones(1, 4)
        assert not torch.equal(network(x), network(x))
