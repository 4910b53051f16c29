"""Schedules and adaptive strength, and clipping after the step."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import LAWS


def make(law: wn.Noise | list[wn.Noise] | float = 0.1) -> nn.Sequential:
    return wn.add_weight_noise(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), law)


def noise_of(model: nn.Module) -> Tensor:
    layer = model.get_submodule("0")
    with wn.hold_noise(model, seed=0):
        noisy = layer.weight
        with wn.no_noise(model):
            return (noisy - layer.weight).detach()


def test_the_factor_follows_the_function_of_the_step() -> None:
    model = make()
    full = noise_of(model)
    schedule = wn.NoiseScheduler(model, lambda step: 1 / (1 + step))
    for step in range(4):
        assert schedule.factor == 1 / (1 + step)
        assert_close(noise_of(model), full / (1 + step))
        schedule.step()


def test_it_multiplies_with_scale_noise_and_outlives_contexts_and_copies() -> None:
    model = make()
    full = noise_of(model)
    wn.NoiseScheduler(model, lambda step: 0.5)
    with wn.scale_noise(model, 0.5):
        assert_close(noise_of(model), full / 4)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(noise_of(other), full / 2)
    wn.remove_weight_noise(model)
    wn.add_weight_noise(model, 0.1)
    assert_close(noise_of(model), full)


def test_a_saved_schedule_goes_on() -> None:
    model, other = make(), make()
    ramp = wn.linear_ramp(10)
    schedule = wn.NoiseScheduler(model, ramp)
    for _ in range(3):
        schedule.step()
    state = json.loads(json.dumps(schedule.state_dict()))
    resumed = wn.NoiseScheduler(other, ramp)
    resumed.load_state_dict(state)
    assert resumed.factor == 0.3
    resumed.step()
    assert resumed.factor == 0.4
    assert_close(noise_of(other), 0.4 / 0.3 * noise_of(_like(model, other)))


def _like(model: nn.Module, other: nn.Module) -> nn.Module:
    model.load_state_dict(other.state_dict())
    return model


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        (wn.linear_ramp(4), [0, 0.25, 0.5, 0.75, 1, 1]),
        (wn.linear_ramp(2, start=2, first=1.0, last=0.0), [1, 1, 1, 0.5, 0, 0]),
        (wn.cosine_ramp(4), [0, (1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2, 1, 1]),
        (wn.cosine_ramp(2, start=1, first=2.0, last=1.0), [2, 2, 1.5, 1, 1, 1]),
        (wn.start_at(3), [0, 0, 0, 1, 1, 1]),
        (wn.start_at(0), [1] * 6),
    ],
)
def test_ramps(ramp: Callable[[int], float], expected: list[float]) -> None:
    assert [ramp(step) for step in range(6)] == pytest.approx(expected)
    assert pickle.loads(pickle.dumps(ramp)) == ramp


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_a_factor_must_be_finite_and_not_negative(bad: float) -> None:
    model = make()
    schedule = wn.NoiseScheduler(model, lambda step: 0.5 if step == 0 else bad)
    with pytest.raises(ValueError, match=r"factor=...\) must be a finite number >= 0"):
        schedule.step()
    assert (schedule.steps, schedule.factor) == (0, 0.5)


def test_a_rate_cannot_be_scheduled_past_one() -> None:
    model = make([wn.DropConnect(0.5), wn.Gaussian(0.1)])
    with pytest.raises(wn.SpecError, match="would have a rate of 1, not below 1"):
        wn.NoiseScheduler(model, lambda step: 2.0)
    with pytest.raises(ValueError, match="A ramp needs steps >= 0"):
        wn.linear_ramp(-1)


def test_without_noise_there_is_nothing_to_schedule() -> None:
    with pytest.raises(wn.NotNoisyError):
        wn.NoiseScheduler(nn.Linear(2, 2), lambda step: 1.0)
    model = make()
    schedule = wn.NoiseScheduler(model, lambda step: 1.0)
    wn.remove_weight_noise(model)
    with pytest.raises(wn.NotNoisyError):
        schedule.step()


SCHEDULED = [
    "gaussian_absmax",
    "drop_connect",
    "quantize_stochastic",
    "stuck_at",
    "bit_flip",
    "log_normal",
    "programming",
]


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("law", SCHEDULED)
def test_a_step_recompiles_nothing(law: str) -> None:
    model, x = make(LAWS[law]), torch.randn(3, 4)
    schedule = wn.NoiseScheduler(model, wn.linear_ramp(10, first=0.2))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with wn.hold_noise(model, seed=0):
        for _ in range(6):
            assert_close(compiled(x), model(x))
            schedule.step()
    assert counters["stats"]["unique_graphs"] == 1
    with wn.hold_noise(model, seed=0, sign=-1):
        assert_close(compiled(x), model(x))


def test_adaptive_noise_finds_the_strength_that_keeps_the_distance() -> None:
    model, x = make(0.3), torch.randn(64, 4)
    adaptive = wn.AdaptiveNoise(model, target=0.05, rate=1.05)
    distances = []
    with torch.no_grad(), wn.no_noise(model):
        clean = model(x)
    for _ in range(300):
        with torch.no_grad():
            distances.append((model(x) - clean).square().mean().sqrt().item())
        adaptive.update(distances[-1])
    # Above or below with equal chance once it has arrived; 5 % steps leave the median within a step or two.
    assert torch.tensor(distances[100:]).median().item() == pytest.approx(0.05, rel=0.15)
    assert adaptive.factor < 1.0


def test_adaptive_noise_moves_by_its_rate_and_goes_on() -> None:
    model = make()
    full = noise_of(model)
    adaptive = wn.AdaptiveNoise(model, target=1.0, rate=2.0)
    assert adaptive.update(0.5) == 2.0
    assert_close(noise_of(model), 2 * full)
    assert adaptive.update(1.0) == 1.0
    other = wn.AdaptiveNoise(model, target=1.0, rate=2.0, initial=3.0)
    assert_close(noise_of(model), 3 * full)
    other.load_state_dict(adaptive.state_dict())
    assert other.factor == 1.0
    assert_close(noise_of(model), full)


@pytest.mark.parametrize(
    "options", [{"target": 0.0}, {"target": 1.0, "rate": 1.0}, {"target": 1.0, "initial": 0.0}]
)
def test_adaptive_options_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="needs target > 0, initial > 0 and rate > 1"):
        wn.AdaptiveNoise(make(), **options)
    with pytest.raises(ValueError, match="distance"):
        wn.AdaptiveNoise(make(), 1.0).update(float("nan"))


def test_clip_weights_cuts_the_clean_weights_that_carry_noise() -> None:
    model = nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 7))
    wn.add_weight_noise(model, {"0.*": 0.1})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pointers = [p.data_ptr() for p in model.parameters()]
    wn.clip_weights(model, 1.5)
    clipped = model.state_dict()["0.weight"]
    limit = 1.5 * clipped.std(correction=0)
    assert_close(clipped, before["0.weight"].clamp(-limit, limit), rtol=1e-5, atol=1e-6)
    assert not torch.equal(clipped, before["0.weight"])
    for name in ("0.bias", "1.weight", "1.bias"):
        assert torch.equal(model.state_dict()[name], before[name])
    assert [p.data_ptr() for p in model.parameters()] == pointers
    wn.clip_weights(model, low=-0.01, high=0.02)
    assert model.state_dict()["0.weight"].max() == torch.tensor(0.02)


def test_clip_weights_in_a_training_loop_keeps_the_range() -> None:
    model = make(wn.Gaussian(0.1, relative_to="absmax"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        wn.clip_weights(model, low=-0.2, high=0.2)
    assert max(model.state_dict()[f"{i}.weight"].abs().max().item() for i in (0, 2)) <= 0.2 + 1e-7


def test_clip_weights_says_what_it_cannot_do_and_changes_nothing() -> None:
    with pytest.raises(wn.NotNoisyError):
        wn.clip_weights(nn.Linear(3, 2))
    model = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    wn.add_weight_noise(model, 0.1)
    before = model.state_dict()["0.weight"].clone()
    with pytest.raises(wn.UnsupportedParameterError, match=r"'1.weight' is made by other parametrizations"):
        wn.clip_weights(model, 1.5)
    assert torch.equal(model.state_dict()["0.weight"], before)
    with pytest.raises(wn.UnsupportedParameterError, match="per=3 names a dimension"):
        wn.clip_weights(make(), 1.5, per=3)
    with pytest.raises(ValueError, match="k or bounds"):
        wn.clip_weights(make(), 0.5, low=0.0)
    for k in (1.0, 0.5):
        with pytest.raises(ValueError, match="would shrink the weights without end"):
            wn.clip_weights(make(), k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("per", ["tensor", 0])
@pytest.mark.parametrize("k", [1.5, 2.0, 2.5])
def test_clipping_again_changes_nothing(k: float, per: Any, size: int, dtype: torch.dtype) -> None:
    model = wn.add_weight_noise(nn.Linear(size, size, bias=False).to(dtype), 0.5)
    weight = model._parameters["weight"]
    with torch.no_grad():
        weight.normal_()
        weight[0] = 0.0  # Constant rows have no range, and nothing that sticks out of it.
        weight[1] = 3.0
        if per == "tensor":
            weight[2, 0] = 50.0
        before = weight.detach().clone()
        wn.clip_weights(model, k, per=per)
        once = weight.clone()
        for _ in range(50):
            wn.clip_weights(model, k, per=per)
    assert_close(weight.detach(), once, rtol=2 * torch.finfo(dtype).eps + 1e-5, atol=1e-6)
    spread = once.double().std(correction=0, dim=None if per == "tensor" else 1, keepdim=True)
    outside = once.double().abs() > k * spread * (1 + 4 * torch.finfo(dtype).eps + 1e-5)
    assert not bool((outside & (spread > 0)).any())
    assert torch.equal(once[0], before[0])
    assert per == "tensor" or torch.equal(once[1], before[1])


@pytest.mark.parametrize("values", ["sparse", "of one sign"])
def test_a_range_that_would_shrink_without_end_is_refused(values: str) -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(9, 9), nn.Linear(50, 50)), 0.1)
    first, weight = (next(model[place].parameters()) for place in (0, 1))
    with torch.no_grad():
        weight.copy_(torch.rand(50, 50) + 1 if values == "of one sign" else torch.eye(50))
    before = first.detach().clone(), weight.detach().clone()
    with pytest.raises(
        wn.UnsupportedParameterError, match=r"clip_weights\(k=2.5\) leaves no range of parameter '1.weight'"
    ):
        wn.clip_weights(model)
    assert torch.equal(first, before[0])
    assert torch.equal(weight, before[1])
    with torch.no_grad():
        weight.fill_(0.25)
    wn.clip_weights(model)
    assert bool((weight == 0.25).all())
