"""``weightnoise tolerance``: find_level, kept as it goes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import weightnoise as wn
from tests.cli.test_cli import INTERRUPTED, MODEL, run, subject, written

__all__ = ["subject"]
COMMAND = ["tolerance", MODEL, "--metric", "subject:metric", "--law", "Gaussian(1.0)", "--draws", "4"]


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (["--at-least", "0.5"], {"at_least": 0.5}),
        (["--at-most", "1.4", "--quantile", "0.9"], {"at_most": 1.4, "quantile": 0.9}),
        (
            ["--at-least", "0", "--yield", "0.6", "--first", "1"],
            {"at_least": 0.0, "chip_yield": 0.6, "first": 1.0},
        ),
    ],
)
def test_a_tolerance_is_find_level(
    options: list[str], asked: Any, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*COMMAND, *options, "--out", "report.json", "--plot", "plot.png") == 0
    captured = capsys.readouterr()
    torch.manual_seed(0)
    made = sys.modules["subject"]
    found = wn.find_level(made.make_network(), made.metric, wn.Gaussian(1.0), draws=4, progress=False, **asked)
    assert f"\n{found}\nReport: report.json\nPlot: plot.png\n" in captured.out
    kept = wn.RobustnessReport.from_dict(written(subject / "report.json"))
    assert kept.levels == found.report.levels
    assert kept.values.equal(found.report.values)
    assert run(*COMMAND, *options, "--out", "report.json") == 0
    assert sys.modules["subject"].calls == 0
    captured = capsys.readouterr()
    assert f"\n{found}\n" in captured.out
    assert "report.json is complete" in captured.err


def test_an_interrupted_search_goes_on(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*COMMAND, "--at-least", "0.5"]
    assert run(*command, "--out", "whole.json") == 0
    calls = sys.modules["subject"].calls
    said = capsys.readouterr().out.splitlines()[-2]
    assert run(*command, "--out", "report.json", stop_at=12) == 130
    assert INTERRUPTED in capsys.readouterr().err
    assert run(*command, "--out", "report.json") == 0
    assert sys.modules["subject"].calls == calls - 11
    assert capsys.readouterr().out.splitlines()[-2] == said
    assert run(*COMMAND, "--at-least", "0.4", "--out", "report.json") == 1
    assert "report.json holds another sweep: at_least (there 0.5, now 0.4)." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ([], 1, "needs a target"),
        (["--at-least", "1", "--quantile", "2"], 1, "quantile=...) must be a number between 0 and 1"),
        (["--at-least", "1", "--law", "Uniform(1.0)"], 2, "a tolerance is that of one law"),
    ],
)
def test_wrong_options_of_a_search(
    options: list[str], code: int, text: str, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*COMMAND, *options) == code
    assert text in capsys.readouterr().err
