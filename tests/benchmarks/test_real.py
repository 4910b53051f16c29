"""The benchmark of real sizes: what it measures, at a tiny size; and that the sizes are those of the models."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks import processes, real
from tests.benchmarks.__main__ import parser
from tests.benchmarks.options import Options

FAST = Options(seconds=0.0, threads=1)


@pytest.mark.parametrize("name", real.CASES)
def test_models_of_real_sizes_at_a_tiny_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    told = iter(["100.0", "130.0", "101.0"])
    commands = []
    monkeypatch.setattr(processes, "run", lambda command, *_: commands.append(command) or next(told))  # type: ignore[func-returns-value]
    rows = real.run(FAST, [name], tiny=True)
    assert [command[-1] for command in commands] == ["--tiny"] * 3
    whats = [row["what"] for row in rows]
    assert {"plan", "add", "enter hold_noise", "save", "plain: load", "forward, held"} < set(whats)
    steps = {row["what"]: row["ratio"] for row in rows if row["what"].startswith("training")}
    assert steps["training step, plain"] == 1.0
    assert all(ratio > 0 for ratio in steps.values())
    memory = {row["what"]: row["mib"] for row in rows if "mib" in row}
    assert memory == {"memory, keep": 30.0, "memory, recompute": 1.0}
    assert all(line.count("|") == 3 for line in real.table(rows).splitlines())


@pytest.mark.parametrize("name", real.CASES)
def test_real_sizes_are_those_of_the_models(name: str) -> None:
    pytest.importorskip("transformers")
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in real.CASES[name].model(False).parameters())
    millions = {"GPT-2": 124.4, "ViT-B": 85.8, "ResNe": 23.5}[name[:5]]
    assert count / 1e6 == pytest.approx(millions, abs=0.1)


def test_the_memory_of_a_real_size_is_that_of_a_process(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    threads = str(torch.get_num_threads())
    assert (
        real.main(["--model", next(iter(real.CASES)), "--way", "recompute", "--tiny", "--threads", threads]) == 0
    )
    assert float(capsys.readouterr().out) > 50


def test_it_runs_on_request_alone() -> None:
    assert "real" not in parser().parse_args([]).sections
    assert parser().parse_args(["--sections", "real"]).sections == ["real"]
