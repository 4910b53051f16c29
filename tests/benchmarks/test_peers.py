"""The harness around the peers, with a peer that the test writes itself."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import weightnoise as wn
from tests.benchmarks.contenders import Step, naive, plain
from tests.benchmarks.draws import DRAWS
from tests.benchmarks.options import Options
from tests.benchmarks.peers import adapters, environments, replacing, section, sweeps, worker
from tests.benchmarks.peers.adapters import ADAPTERS
from tests.benchmarks.peers.environments import REQUIREMENTS
from tests.benchmarks.peers.replacing import Noisy
from tests.benchmarks.peers.section import MODELS
from tests.benchmarks.processes import ProcessError
from tests.benchmarks.workloads import Workload, labels, mlp

SMALL = Workload(lambda: mlp(6, 5, 4), lambda: (torch.randn(8, 6), labels(8, 4)))
PEER = """
import torch
from torch import nn
class BayesLinear(nn.Module):
    def __init__(self, mu, sigma, inputs, outputs, bias=True):
        super().__init__()
        self.weight_mu = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias_mu = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.sigma = sigma
    def forward(self, x):
        weight = self.weight_mu + 2 * self.sigma * torch.randn_like(self.weight_mu)
        return nn.functional.linear(x, weight, self.bias_mu)
class BayesConv2d(nn.Module):
    def __init__(self, mu, sigma, inputs, outputs, size, **options):
        raise NotImplementedError("no padding")
"""

FAULTS = """
from types import SimpleNamespace
class EasyConfig(SimpleNamespace):
    @classmethod
    def load_preset(cls, name):
        assert name == "float_weight_fi"
        return cls()
    def set_module_used(self, index, module_type):
        assert module_type == ["Linear"]
class MRFI:
    def __init__(self, model, config):
        self.model, self.args = model, SimpleNamespace(rate=0.0)
    def get_weights_configs(self, name):
        assert name == "selector.args"
        return self.args
    def __call__(self, x):
        assert self.args.rate > 0
        return self.model(x)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with the name of a peer, whose noise is twice as strong as it says."""
    (tmp_path / "torchbnn.py").write_text(PEER)
    (tmp_path / "torchbnn-7.7.dist-info").mkdir()
    (tmp_path / "torchbnn-7.7.dist-info" / "METADATA").write_text("Name: torchbnn\nVersion: 7.7\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def here(folder: Path, name: str, requirement: str, progress: object) -> Path:
    if name == "torchrl":
        raise ProcessError("ERROR: No matching distribution")
    return Path(sys.executable)


@pytest.mark.usefixtures("fake")
def test_peers_are_measured_in_processes_and_failures_are_told() -> None:
    options = Options(seconds=0.0, threads=1, names=["torchrl", "torchbnn"])
    other = [section.OTHER[0], section.OTHER[2]]
    missing, found = section.measure(options, here, layers=2, width=100, models=MODELS[:1], other=other)
    assert missing["error"] == "ERROR: No matching distribution"
    assert found["version"] == "7.7"
    assert found["strength"] == pytest.approx(0.02, rel=0.05)
    assert [row["contender"] for row in found["rows"]] == ["plain", "weightnoise on", "torchbnn"] * 2
    assert found["memory"]["contender"] == "torchbnn"
    first, second = section.table([missing, found]).split("\n\n")
    assert second.splitlines()[2] == "| torchbnn 7.7 | NotImplementedError: no padding | no way |"
    lines = first.splitlines()
    assert {line.count("|") for line in lines} == {6}
    assert lines[2].startswith("| torchrl | does not run: ERROR: No matching distribution |")
    assert lines[3].startswith("| torchbnn 7.7 |")
    assert lines[3].endswith(f"| {found['memory']['share']:.1f} | {found['strength']:.4f} |")


def test_memory_that_fails_leaves_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"model": "m", "what": what, "contender": name, "ratio": 2.0}
        for what in ("step", "draw")
        for name in ("plain", "weightnoise on", "torchbnn")
    ]

    def run(command: Sequence[str], seconds: float, variables: object = None) -> str:
        if "--memory" in command:
            raise ProcessError("killed")
        return f'noise on stdout\n{{"version": "1", "strength": 0.01, "rows": {rows}}}'.replace("'", '"')

    monkeypatch.setattr(section, "run", run)
    found = section.measure(Options(names=["torchbnn"]), here)
    assert found[0]["memory"] == {"error": "killed"}
    assert section.table(found).splitlines()[-1] == "| torchbnn 1 | 2.00 (2.00) | 2.00 (2.00) | killed | 0.0100 |"


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[Sequence[str]] = []

    def run(command: Sequence[str], seconds: float) -> str:
        commands.append(command)
        (tmp_path / "torchbnn").mkdir(exist_ok=True)
        return ""

    monkeypatch.setattr(environments, "run", run)
    for requirement in ("torchbnn==1.2", "torchbnn==1.2", "torchbnn==1.3"):
        python = environments.python_of(tmp_path, "torchbnn", requirement, lambda text: None)
    assert python == tmp_path / "torchbnn" / "bin" / "python"
    assert [command[-1] for command in commands] == [
        str(tmp_path / "torchbnn"),
        "torchbnn==1.2",
        str(tmp_path / "torchbnn"),
        "torchbnn==1.3",
    ]


def test_an_environment_that_fails_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def run(command: Sequence[str], seconds: float) -> str:
        tries.append(command)
        raise ProcessError("no")

    monkeypatch.setattr(environments, "run", run)
    for _ in range(2):
        with pytest.raises(ProcessError, match=r"^no$"):
            environments.python_of(tmp_path, "torchbnn", "torchbnn==1.2", lambda text: None)
    assert len(tries) == 2


def test_every_peer_has_a_way_to_be_measured_and_a_pinned_version() -> None:
    assert ADAPTERS.keys() | sweeps.SWEEPS.keys() == REQUIREMENTS.keys()
    assert all("==" in requirement for requirement in REQUIREMENTS.values())


def test_a_peer_without_noise_takes_the_plain_step() -> None:
    found = []
    for make in (plain, lambda task, model, std: worker.training_step(task, Noisy(model))):
        torch.manual_seed(0)
        model = SMALL.model()
        make(SMALL, model, 0.0)()
        found.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(mine, other) for mine, other in zip(*found, strict=True))


def test_each_forward_enters_the_peers_context() -> None:
    entered = []

    @contextmanager
    def around() -> Iterator[None]:
        entered.append(1)
        yield

    noisy = Noisy(SMALL.model(), around)
    worker.training_step(SMALL, noisy)()
    assert len(entered) == 1
    worker.evaluation(SMALL, noisy)()
    assert len(entered) == 1 + DRAWS


@pytest.mark.parametrize("std", [0.0, 0.03])
def test_the_strength_of_noise_is_seen_from_outside(std: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STD", std)
    found = worker.strength(lambda model, std: Noisy(naive(model, std)), width=128, draws=100)
    assert found == pytest.approx(std, rel=0.02, abs=1e-7)


class Peers(nn.Module):
    """A layer of a peer without noise: what torch's does with the means."""

    def __init__(self, kind: type[nn.Module], *sizes: int, **options: Any) -> None:
        super().__init__()
        inner: Any = kind(*sizes, **options)
        self.inner = inner
        self.weight_mu, self.bias_mu = inner.weight, inner.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(x)
        return found


def test_layers_are_replaced_with_their_weights_as_means() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.Flatten(), nn.Linear(16, 2))
    for model, x in ((mlp(6, 5, 4), torch.randn(3, 6)), (conv, torch.randn(2, 3, 4, 4))):
        before, layers = model(x), list(model)
        ways = [functools.partial(Peers, kind) for kind in (nn.Linear, nn.Conv2d)]
        noisy = replacing.with_layers(model, *ways)
        assert torch.equal(noisy.model(x), before)
        kept = [mine is other for mine, other in zip(model, layers, strict=True)]
        assert kept == [False, True, False]


def test_a_recurrent_layer_has_the_examples_first() -> None:
    class Recurrent(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.lstm = nn.LSTM(inputs, outputs, batch_first=True)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return self.lstm(x)[0], None

    plain = nn.Sequential(nn.LSTM(3, 4))
    model = replacing.with_layers(copy.deepcopy(plain), nn.Linear, lstm=Recurrent).model
    model[0].inner.lstm.load_state_dict(plain[0].state_dict())
    x = torch.randn(5, 2, 3)
    assert torch.equal(model(x)[0], plain(x)[0])


def test_the_share_of_noisy_weights_leaves_out_layers_of_torch() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Embedding(6, 2))
    noisy = replacing.with_layers(copy.deepcopy(model), functools.partial(Peers, Linear))
    assert replacing.share(noisy, model) == pytest.approx(0.5)
    assert replacing.share(Noisy(model), model) == 0.0
    assert replacing.share(Noisy(model, in_place=True), model) == 1.0


class Linear(nn.Linear):
    """A layer that torch does not have."""


def test_a_sweep_measures_every_level_as_often_as_there_are_draws() -> None:
    seen: list[int] = []

    def peer(model: nn.Module, metric: Callable[[nn.Module], float], levels: Sequence[float]) -> Step:
        return lambda: seen.append(len([metric(model) for _ in range(sweeps.DRAWS) for _ in levels]))

    sweep = sweeps.Sweep((0.0, 0.1), peer, lambda std: wn.Gaussian(std))
    rows = sweeps.measure_sweep("torchbnn", sweep, 0.0)
    assert set(seen) == {2 * sweeps.DRAWS}
    ratios = {row["contender"]: row["ratio"] for row in rows}
    assert ratios["plain"] == 1.0
    table = section.swept([{"peer": "torchbnn", "version": "7.7", "sweep": rows}, {"peer": "torchrl"}])
    assert table.splitlines()[2] == f"| torchbnn 7.7 | {ratios['torchbnn']:.1f} | {ratios['weightnoise on']:.1f} |"
    assert section.swept([{"peer": "torchrl"}]) == ""


def test_a_peer_that_is_made_for_evaluations_stands_in_the_table_of_sweeps_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mrfi.py").write_text(FAULTS)
    (tmp_path / "MRFI-2.1.0.dist-info").mkdir()
    (tmp_path / "MRFI-2.1.0.dist-info" / "METADATA").write_text("Name: MRFI\nVersion: 2.1.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = section.measure(Options(seconds=0.0, threads=1, names=["MRFI"]), here, models=MODELS[:1], other=())
    assert found.keys() == {"peer", "requirement", "version", "sweep"}
    first, second = section.table([found]).split("\n\n")
    assert len(first.splitlines()) == 2  # The heads.
    assert second.splitlines()[2].startswith("| MRFI 2.1.0 |")


@pytest.mark.parametrize("name", sweeps.SWEEPS)
def test_the_law_of_a_sweep_is_one_at_every_level(name: str) -> None:
    for level in sweeps.SWEEPS[name].levels:
        assert isinstance(sweeps.SWEEPS[name].law(level), wn.Noise)


def test_rho_is_what_softplus_undoes() -> None:
    assert nn.functional.softplus(torch.tensor(adapters.rho(0.01))).item() == pytest.approx(0.01)
