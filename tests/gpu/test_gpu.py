"""The command for GPUs says what it has done and what it has skipped, on a machine without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.gpu import checks
from tests.gpu.__main__ import TIMINGS, main, markdown, parser

GRAPHS = "CUDA graphs, torch's generator"


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_it_runs_without_a_gpu_and_says_what_it_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(checks.CHECKS, "one", lambda: "all right")
    page, file = tmp_path / "report.md", tmp_path / "report.json"
    only = [GRAPHS, "Triton's bits against C", "marked tests", TIMINGS, "one"]
    assert main(["--only", *only, "--json", str(file), "--markdown", str(page)]) == 0
    rows = json.loads(file.read_text())["checks"]
    assert [row["outcome"] for row in rows] == ["skipped"] * 4 + ["passed"]
    assert all(row["said"] == "needs 1 GPU, and there are 0" for row in rows[:4])
    assert page.read_text() == capsys.readouterr().out
    assert f"| {GRAPHS} | skipped |" in page.read_text()
    assert "| one | passed |" in page.read_text()


def test_a_check_that_fails_is_told_and_fails_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> str:
        raise ValueError("other bits")

    monkeypatch.setitem(checks.CHECKS, "one", broken)
    assert main(["--only", "one", TIMINGS]) == 1
    said = capsys.readouterr().out
    assert "| one | failed |" in said
    assert "ValueError: other bits" in said
    assert "| timings | skipped |" in said


def test_all_checks_run_by_default() -> None:
    assert parser().parse_args([]).only == [*checks.CHECKS, TIMINGS]


def test_the_report_has_the_timings() -> None:
    row = {"weights": 4096, "way": "Triton", "microseconds": 3.21, "ratio": 0.5}
    on = {"gpus": ["A GPU"], "torch": "2", "cuda": "12", "engine": "philox"}
    assert "| 4,096 | Triton | 3.2 | 0.50 |" in markdown({"machine": on, "checks": [], "timings": [row]})
