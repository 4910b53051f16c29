"""Weight noise in Lightning Fabric: the loop of the docs, and the bits of a loop without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import weightnoise as wn

fabric_module = pytest.importorskip("lightning.fabric", reason="needs the extra 'lightning'")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


def made(size: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 1))


def fabric(**options: Any) -> Any:
    one = fabric_module.Fabric(accelerator="cpu", devices=1, **options)
    one.launch()
    return one


@pytest.mark.parametrize("law", [wn.Gaussian(0.3), wn.LearnedGaussian(0.3)], ids=repr)
@pytest.mark.parametrize("size", [8, 64])
def test_training_has_the_bits_of_a_loop_without_it(size: int, law: Any, tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 4 * size).reshape(4, size)
    plain = wn.add_weight_noise(made(size), law)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.1)
    schedule = wn.NoiseScheduler(plain, wn.linear_ramp(4))
    torch.manual_seed(1)
    for _ in range(3):
        optimizer.zero_grad()
        plain(x).square().mean().backward()
        optimizer.step()
        schedule.step()

    runner, inner = fabric(), wn.add_weight_noise(made(size), law)
    model, stepper = runner.setup(inner, torch.optim.Adam(inner.parameters(), lr=0.1))
    its_schedule = wn.NoiseScheduler(model, wn.linear_ramp(4))
    torch.manual_seed(1)
    for _ in range(3):
        stepper.zero_grad()
        runner.backward(model(x).square().mean())
        stepper.step()
        its_schedule.step()

    found, expected = model.state_dict(), plain.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with wn.hold_noise(model.module, seed=3), wn.hold_noise(plain, seed=3):
        assert torch.equal(model(x), plain(x))
    with wn.no_noise(model), wn.no_noise(plain):
        assert torch.equal(model(x), plain(x))
    assert not torch.equal(model(x), model(x))

    runner.save(tmp_path / "last.ckpt", {"model": model, "schedule": its_schedule})
    again = wn.add_weight_noise(made(size), law)
    its_schedule = wn.NoiseScheduler(again, wn.linear_ramp(4))
    runner.load(tmp_path / "last.ckpt", {"model": again, "schedule": its_schedule})
    assert its_schedule.steps == 3
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_the_precision_of_fabric_is_that_of_the_forward() -> None:
    runner = fabric(precision="bf16-true")
    model = runner.setup(wn.add_weight_noise(made(8), 0.3))
    assert model(torch.ones(2, 8)).dtype == torch.float32  # Fabric's wrapper converts what comes out.
    with wn.hold_noise(model, seed=0):
        assert model.module[0].weight.dtype == torch.bfloat16
    report = wn.evaluate_robustness(
        model, lambda model: model(torch.ones(2, 8)).sum(), levels=[0.0, 1.0], draws=3, progress=False
    )
    assert report.std[0] == 0 < report.std[1]


def test_the_code_in_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs/integrations.md").read_text()
    code = page.partition("### Fabric")[2].partition("```py\n")[2].partition("```")[0]
    loader: Any = torch.utils.data.DataLoader(torch.linspace(-1, 1, 64).reshape(8, 8), batch_size=2)
    names: dict[str, Any] = {"model": made(8), "train_loader": loader, "loss_of": lambda out: out.square().mean()}
    exec(code.replace("Fabric(", "Fabric(accelerator='cpu', devices=1, "), names)
    assert not wn.has_weight_noise(names["model"])
