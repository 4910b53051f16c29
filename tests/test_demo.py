"""The demo runs, writes its plot, is honest about its errors, and shows what it claims."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from weightnoise import _demo
from weightnoise.__main__ import main


def test_a_small_run_prints_the_table_and_writes_a_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plot.png"
    assert main(["demo", "--seeds", "1", "--epochs", "2", "--draws", "3", "--output", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    head = next(line for line in lines if line.startswith("trained with"))
    assert head.split()[2:] == [f"{level:g}" for level in _demo.LEVELS]
    rows = [line for line in lines if "+-" in line and not line.startswith("Mean")]
    assert [row.count("+-") for row in rows] == [len(_demo.LEVELS)] * 2
    assert "epoch 1/2" in captured.err
    assert str(path) in captured.out


@pytest.mark.slow
def test_the_network_trained_with_noise_is_ahead_under_noise() -> None:
    plain, noisy = _demo.run(seeds=2, epochs=60, draws=20, progress=lambda text: None)
    for index, level in enumerate(_demo.LEVELS):
        if level >= 0.1:
            gap = noisy.mean[index] - plain.mean[index]
            # 4 standard errors over the 40 network-draw pairs of each curve.
            spread = (plain.spread[index].square() + noisy.spread[index].square()).sqrt()
            assert gap > 4 * spread / (2 * 20) ** 0.5, level
    assert (noisy.mean[0] - plain.mean[0]).abs() < 2.0


def test_a_run_is_reproducible_and_evaluation_leaves_the_model() -> None:
    digits = _demo.load_digits()
    models = [_demo.train(digits, 0.2, seed=0, epochs=1, progress=lambda text: None) for _ in range(2)]
    first, second = ([p.detach().clone() for p in model.parameters()] for model in models)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    found = _demo.evaluate(models[0], digits, 0.1, 3)
    assert found == _demo.evaluate(models[1], digits, 0.1, 3)
    assert len(set(found)) > 1
    assert all(torch.equal(a, b) for a, b in zip(first, models[0].parameters(), strict=True))


def test_the_standard_error_is_that_of_networks_or_of_draws() -> None:
    values = torch.tensor([[[1.0, 3.0], [5.0, 7.0]]])
    assert _demo.Curve("", values).error.item() == pytest.approx(2.0)  # means 2 and 6: std sqrt(8), over sqrt(2)
    assert _demo.Curve("", values[:, :1]).error.item() == pytest.approx(1.0)  # 1 and 3: std sqrt(2), over sqrt(2)


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib"])
def test_a_missing_extra_is_one_line_and_exit_code_2(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    assert main(["demo"]) == 2
    expected = f"weightnoise: the demo needs {missing}: pip install 'torch-weightnoise[demo]'\n"
    assert capsys.readouterr().err == expected


def test_a_plot_that_cannot_be_written_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--output", "/nowhere/plot.png"]) == 1
    assert capsys.readouterr().err.startswith("weightnoise: cannot write the plot: ")


@pytest.mark.parametrize("arguments", [["demo", "--seeds", "0"], ["demo", "--draws", "1"], ["nothing"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_help_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "demo" in capsys.readouterr().out
