"""What the benchmark compares does the same work: without noise every contender takes the plain step."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn
from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.workloads import (
    WORKLOADS,
    LanguageModel,
    SequenceModel,
    Workload,
    labels,
    mlp,
    resnet,
)

MLP, WIDE_MLP, RESNET, TRANSFORMER, LSTM, READS = WORKLOADS
SMALL = {
    MLP: Workload(lambda: mlp(6, 5, 5, 4), lambda: (torch.randn(8, 6), labels(8, 4))),
    WIDE_MLP: Workload(lambda: mlp(6, 6, 6, 6, 4), lambda: (torch.randn(8, 6), labels(8, 4))),
    RESNET: Workload(lambda: resnet(4), lambda: (torch.randn(2, 3, 8, 8), labels(2))),
    TRANSFORMER: Workload(lambda: LanguageModel(20, 16), lambda: (torch.randint(20, (2, 6)), labels(2 * 6, 20))),
    LSTM: Workload(lambda: SequenceModel(6, 5), lambda: (torch.randn(4, 3, 6), labels(3))),
    READS: replace(WORKLOADS[READS], trains=True),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def after_a_step(workload: str, contender: str, std: float) -> list[Tensor]:
    torch.manual_seed(0)
    model = SMALL[workload].model()
    parameters = list(model.parameters())  # Before torch's parametrize changes their order.
    CONTENDERS[contender](SMALL[workload], model, std)()
    return [p.detach().clone() for p in parameters]


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_without_noise_every_contender_takes_the_plain_step(workload: str, contender: str) -> None:
    found, expected = after_a_step(workload, contender, 0.0), after_a_step(workload, "plain", 0.0)
    # Steps are of 1e-4; Adam turns a difference in rounding of a tiny gradient into part of a step.
    assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_with_noise_only_the_noisy_contenders_differ(workload: str, contender: str) -> None:
    found, expected = after_a_step(workload, contender, 0.5), after_a_step(workload, "plain", 0.5)
    same = all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))
    assert same is (contender in ("plain", "weightnoise off", "weightnoise removed"))


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_noisy_gradients_update_clean_weights(workload: str, contender: str) -> None:
    torch.manual_seed(0)
    before = list(SMALL[workload].model().parameters())
    for found, value in zip(after_a_step(workload, contender, 0.5), before, strict=True):
        # The first step of Adam is of the learning rate at most; noise left behind is of 0.5.
        assert float((found - value).detach().abs().max()) <= 1.01e-4


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_matrix_is_noisy(workload: str) -> None:
    model: nn.Module = WORKLOADS[workload].model()
    matrices = [name for name, p in model.named_parameters() if p.ndim >= 2]
    assert list(wn.noisy_parameters(wn.add_weight_noise(model, 0.01))) == matrices


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_workload_steps(workload: str) -> None:
    torch.manual_seed(0)
    model = WORKLOADS[workload].model()
    before = copy.deepcopy(model.state_dict())
    CONTENDERS["weightnoise on"](WORKLOADS[workload], model, 0.01)()
    moved = any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert moved is WORKLOADS[workload].trains


@pytest.mark.parametrize("contender", CONTENDERS)
def test_every_contender_runs_a_forward_alone(contender: str) -> None:
    torch.manual_seed(0)
    model = WORKLOADS[READS].model()
    parameters = [(p, p.detach().clone()) for p in model.parameters()]
    CONTENDERS[contender](WORKLOADS[READS], model, 0.5)()
    for p, value in parameters:
        assert torch.equal(p, value)
        assert p.grad is None
