"""The harness around the peers, with a peer that the test writes itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.benchmarks.contenders import naive, plain
from tests.benchmarks.draws import DRAWS
from tests.benchmarks.options import Options
from tests.benchmarks.peers import adapters, environments, section, worker
from tests.benchmarks.peers.adapters import ADAPTERS, Noisy
from tests.benchmarks.peers.environments import REQUIREMENTS
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
    missing, found = section.measure(options, here, layers=2, width=100, models=MODELS[:1])
    assert missing["error"] == "ERROR: No matching distribution"
    assert found["version"] == "7.7"
    assert found["strength"] == pytest.approx(0.02, rel=0.05)
    assert [row["contender"] for row in found["rows"]] == ["plain", "weightnoise on", "torchbnn"] * 2
    assert found["memory"]["contender"] == "torchbnn"
    lines = section.table([missing, found]).splitlines()
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


def test_every_peer_has_an_adapter_and_a_pinned_version() -> None:
    assert set(ADAPTERS) == set(REQUIREMENTS)
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


def test_layers_are_replaced_with_their_weights_as_means() -> None:
    def make(old: nn.Linear) -> nn.Module:
        return adapters.means(nn.Linear(old.in_features, old.out_features), old, "weight", "bias")

    model, x = mlp(6, 5, 4), torch.randn(3, 6)
    before, layers = model(x), list(model)
    adapters.replace_linear(model, make)
    assert torch.equal(model(x), before)
    assert [mine is other for mine, other in zip(model, layers, strict=True)] == [False, True, False]


def test_rho_is_what_softplus_undoes() -> None:
    assert nn.functional.softplus(torch.tensor(adapters.rho(0.01))).item() == pytest.approx(0.01)
