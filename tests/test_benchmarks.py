"""What the benchmark compares does the same work: without noise every contender takes the plain step."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn
from tests.benchmarks import draws, embeddings, memory
from tests.benchmarks.__main__ import main
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


def test_the_command_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--markdown", str(tmp_path / "table.md"), "--json", str(tmp_path / "table.json")]
    arguments = ["--seconds", "0.05", "--threads", "1", "--workloads", READS]
    assert main([*arguments, "--contenders", "weightnoise on", *files]) == 0
    out, err = capsys.readouterr()
    assert f"| {READS} |" in out
    assert err == f"{READS}\n"
    assert (tmp_path / "table.md").read_text() == out
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["machine"]["torch"] == torch.__version__
    assert [row["contender"] for row in found["results"]] == ["plain", "weightnoise on"]
    assert found["results"][0]["ratio"] == 1.0
    assert all(len(row["times"]) >= 5 for row in found["results"])


def test_the_comparison_of_draws_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert draws.main(["--rounds", "1", "--draws", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 + len(draws.models())
    assert all(line.count("|") == 4 for line in lines[2:])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_recomputed_weights_take_the_memory_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main(["--layers", "12", "--width", "1500"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    matrices = {name: float(extra) for name, _, extra in rows}
    assert matrices["Gaussian(0.01), keep"] > 9
    assert matrices["Gaussian(0.01), recompute"] < 2


def test_the_embeddings_are_timed_three_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert embeddings.main(vocabulary=5000, width=16, rounds=2) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "no noise",
        "rows",
        "whole draw",
    ]
