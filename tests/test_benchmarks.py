"""What the benchmark compares does the same work: without noise every contender takes the plain step."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.benchmarks.__main__ import main
from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.workloads import WORKLOADS, Workload, mlp

SMALL = Workload(lambda: mlp(6, 5, 4), lambda: (torch.randn(8, 6), torch.randint(4, (8,))))


def after_a_step(contender: str, std: float) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = SMALL.model()
    parameters = list(model.parameters())
    step = CONTENDERS[contender](SMALL, model, std)
    step()
    return [p.detach().clone() for p in sorted(parameters, key=lambda p: p.shape)]


@pytest.mark.parametrize("contender", CONTENDERS)
def test_without_noise_every_contender_takes_the_plain_step(contender: str) -> None:
    for found, expected in zip(after_a_step(contender, 0.0), after_a_step("plain", 0.0), strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("contender", CONTENDERS)
def test_with_noise_only_the_noisy_contenders_differ(contender: str) -> None:
    same = all(
        torch.equal(found, expected)
        for found, expected in zip(after_a_step(contender, 0.5), after_a_step("plain", 0.5), strict=True)
    )
    assert same is (contender in ("plain", "weightnoise off", "weightnoise removed"))


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_workload_steps(workload: str) -> None:
    torch.manual_seed(0)
    model = WORKLOADS[workload].model()
    before = copy.deepcopy(model.state_dict())
    CONTENDERS["weightnoise on"](WORKLOADS[workload], model, 0.01)()
    moved = any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert moved is WORKLOADS[workload].trains


def test_the_command_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "24 x Linear(8, 8), forward only"
    files = ["--markdown", str(tmp_path / "table.md"), "--json", str(tmp_path / "table.json")]
    arguments = ["--seconds", "0.05", "--threads", str(torch.get_num_threads()), "--workloads", name]
    assert main([*arguments, "--contenders", "weightnoise on", *files]) == 0
    assert f"| {name} |" in capsys.readouterr().out
    assert f"| {name} |" in (tmp_path / "table.md").read_text()
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["contender"] for row in rows] == ["plain", "weightnoise on"]
    assert rows[0]["ratio"] == 1.0
