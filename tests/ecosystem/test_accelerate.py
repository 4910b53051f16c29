"""accelerate: prepare, accumulate, save and load a state, unwrap, and its hooks on the forward."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import weightnoise as wn

accelerate = pytest.importorskip("accelerate", reason="needs the extra 'accelerate'")

X = torch.linspace(-1, 1, 32).reshape(8, 4)
SPEC = wn.Gaussian(0.3)


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def parts(model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    return model, torch.optim.AdamW(model.parameters(), lr=0.05), DataLoader(TensorDataset(X), batch_size=2)


def train(accelerator: Any, model: nn.Module, optimizer: Any, loader: Any) -> None:
    for (x,) in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(x).square().mean())
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
def test_training_is_that_of_a_plain_loop(before: bool, steps: int) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = make()
    if before:
        wn.add_weight_noise(model, SPEC)
    model, optimizer, loader = accelerator.prepare(*parts(model))
    if not before:
        wn.add_weight_noise(model, SPEC)
    batches = [x for (x,) in loader]
    torch.manual_seed(5)
    for number, x in enumerate(batches):
        accelerator.backward(model(x).square().mean() / steps)
        if (number + 1) % steps == 0:
            optimizer.step()
            optimizer.zero_grad()
    by_hand, plain_optimizer, _ = parts(wn.add_weight_noise(make(), SPEC))
    torch.manual_seed(5)
    for number, x in enumerate(batches):
        (by_hand(x).square().mean() / steps).backward()
        if (number + 1) % steps == 0:
            plain_optimizer.step()
            plain_optimizer.zero_grad()
    for one, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_saved_state_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    def begin() -> tuple[Any, Any, Any, Any, Any]:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(cpu=True)
        model, optimizer, loader = accelerator.prepare(*parts(wn.add_weight_noise(make(), SPEC)))
        schedule = wn.NoiseScheduler(model, wn.linear_ramp(3))
        accelerator.register_for_checkpointing(schedule)
        return accelerator, model, optimizer, loader, schedule

    accelerator, model, optimizer, loader, schedule = begin()
    train(accelerator, model, optimizer, loader)
    schedule.step()
    accelerator.save_state(str(tmp_path))
    train(accelerator, model, optimizer, loader)
    uninterrupted = [parameter.clone() for parameter in model.parameters()]
    accelerator, model, optimizer, loader, schedule = begin()
    accelerator.load_state(str(tmp_path))  # torch's random state comes along.
    assert schedule.steps == 1
    train(accelerator, model, optimizer, loader)
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted, model.parameters(), strict=True))


def test_a_saved_model_is_plain(tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(wn.add_weight_noise(make(), SPEC))
    accelerator.save_model(model, str(tmp_path))
    plain = make()
    for parameter in plain.parameters():
        nn.init.zeros_(parameter)
    accelerate.load_checkpoint_in_model(plain, str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), make().parameters(), strict=True))
    assert list(accelerator.get_state_dict(model)) == list(make().state_dict())
    assert wn.has_weight_noise(accelerator.unwrap_model(model))


@pytest.mark.parametrize("before", [True, False])
def test_autocast_and_its_wrapped_forward(before: bool) -> None:
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    model = wn.add_weight_noise(make(), SPEC) if before else make()
    model = accelerator.prepare(model)
    if not before:
        wn.add_weight_noise(model, SPEC)
    assert not torch.equal(model(X), model(X))
    with wn.hold_noise(model, seed=1):
        assert torch.equal(model(X), model(X))
        noisy = model(X)
    expected = wn.add_weight_noise(make(), SPEC)
    with wn.hold_noise(expected, seed=1), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(noisy, expected(X).float())
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    wn.remove_weight_noise(model)
    assert torch.equal(model(X), make()(X))


def test_offloaded_weights() -> None:
    """cpu_offload keeps weights elsewhere and puts them in place for each forward, for which it reads them."""
    law = wn.Quantize(4)  # Without random numbers, because those reads draw some.
    model, expected = wn.add_weight_noise(make(), law), wn.add_weight_noise(make(), law)
    accelerate.cpu_offload(model, execution_device="cpu")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model(X), expected(X))
    assert not torch.allclose(model(X), make()(X))
    with wn.no_noise(model):
        assert torch.equal(model(X), make()(X))


def test_offloaded_ranges_of_converters() -> None:
    """What is learned on activations comes along in each forward; what is written, or is relative, does not."""
    law = wn.Converter(5, learned=True)
    expected = wn.add_activation_noise(make(), law, at="input")
    late = wn.add_activation_noise(make(), law, at="input")
    wn.calibrate_ranges(expected, [X])
    model = copy.deepcopy(expected)
    relative = wn.add_activation_noise(copy.deepcopy(expected), wn.OutputNoise(0.1))
    for each in (model, late, relative):
        accelerate.cpu_offload(each, execution_device="cpu")
    assert torch.equal(model(X), expected(X))
    with pytest.raises(wn.UnsupportedActivationError, match="would set a range that is offloaded"):
        late(X)
    with pytest.raises(wn.UnsupportedActivationError, match="relative to a weight that is offloaded"):
        relative(X)


def test_offloaded_weights_of_random_noise() -> None:
    model, expected = wn.add_weight_noise(make(), SPEC), wn.add_weight_noise(make(), SPEC)
    accelerate.cpu_offload(model, execution_device="cpu")
    with torch.no_grad():
        spreads = [torch.stack([each(X) for _ in range(1000)]).std(dim=0).mean() for each in (model, expected)]
    # A standard deviation from 1000 draws has a standard error of 2 %; this is the mean of 24.
    torch.testing.assert_close(*spreads, rtol=0.05, atol=0.0)


def test_offloaded_weights_in_a_hold() -> None:
    """The draw is made in the first forward, where the weights have numbers."""
    model, expected = wn.add_weight_noise(make(), SPEC), wn.add_weight_noise(make(), SPEC)
    accelerate.cpu_offload(model, execution_device="cpu")
    with wn.hold_noise(model, seed=1), wn.hold_noise(expected, seed=1):
        assert torch.equal(model(X), expected(X))
        assert torch.equal(model(X), expected(X))


def test_noise_that_comes_after_offloading() -> None:
    model, expected = make(), wn.add_weight_noise(make(), SPEC)
    accelerate.cpu_offload(model, execution_device="cpu")
    wn.add_weight_noise(model, SPEC)
    assert not torch.equal(model(X), model(X))
    with wn.hold_noise(model, seed=1), wn.hold_noise(expected, seed=1):
        assert torch.equal(model(X), expected(X))
        assert torch.equal(model(X), expected(X))
    with wn.no_noise(model):
        assert torch.equal(model(X), make()(X))


def test_the_code_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs/integrations.md").read_text()
    code = page.partition("## accelerate")[2].partition("```py\n")[2].partition("```")[0]
    model, optimizer, loader = parts(wn.add_weight_noise(make(), SPEC))
    names: dict[str, Any] = {"model": model, "optimizer": optimizer, "loader": loader, "wn": wn}
    names["accelerator"] = accelerate.Accelerator(cpu=True)
    exec(code, names)
    assert names["schedule"].factor == 0.0
