"""The demo runs, writes its plot, is honest about its errors, and shows what it claims."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import weightnoise
from weightnoise import _demo
from weightnoise.__main__ import main


def test_a_small_run_prints_the_table_and_writes_a_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plot.png"
    threads = torch.get_num_threads()
    assert main(["demo", "--seeds", "1", "--epochs", "2", "--draws", "3", "--output", str(path)]) == 0
    assert torch.get_num_threads() == threads
    assert path.read_bytes().startswith(b"\x89PNG")
    captured = capsys.readouterr()
    head, *rows = captured.out.splitlines()[:3]
    assert head.split() == ["trained", "with", *(f"{level:g}" for level in _demo.LEVELS)]
    assert [row.split("  ")[0] for row in rows] == ["no noise", "noise 0.2"]
    assert [row.count("+-") for row in rows] == [len(_demo.LEVELS)] * 2
    assert max(map(len, [head, *rows])) < 80
    assert "of 1 network under 3 seeded draws" in " ".join(captured.out.split())
    assert captured.err.startswith("network 1/2 (no noise): epoch 1/2, loss ")
    assert str(path) in captured.out


def test_the_command_says_nothing_but_its_progress_on_stderr(tmp_path: Path) -> None:
    options = ["demo", "--seeds", "1", "--epochs", "1", "--draws", "2", "--noise", "0.1"]
    command = [sys.executable, "-m", "weightnoise", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["weightnoise-demo.png"]
    assert all(line.startswith("network ") for line in done.stderr.splitlines()), done.stderr
    assert "noise 0.1" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.slow
def test_the_network_trained_with_noise_is_ahead_under_noise() -> None:
    plain, noisy = _demo.run(noise=0.2, seeds=3, epochs=60, draws=20, progress=lambda text: None)
    gap = _demo.Curve("gap", noisy.values - plain.values)
    for index, level in enumerate(_demo.LEVELS):
        if level >= 0.1:
            # With 3 networks of each kind a standard error is itself known to a factor of 2 only, so the
            # smallest of the 3 paired differences has to be positive as well.
            assert gap.mean[index] > 2 * gap.error[index], level
            assert gap.values[index].mean(dim=1).min() > 0, level
    assert gap.mean[-1] > 8.0  # 18.0 +- 2.8 with 5 networks.
    assert (noisy.mean[0] - plain.mean[0]).abs() < 1.0  # SCIENCE: clean accuracy stays within a point.


def test_the_verdict_does_not_hide_a_loss() -> None:
    plain = _demo.Curve("no noise", torch.full((len(_demo.LEVELS), 2, 3), 80.0))
    noisy = _demo.Curve("noise 0.2", plain.values - torch.tensor([[4.0], [6.0]]))
    said = " ".join(_demo.verdict([plain, noisy]).split())
    assert "puts the network 5.0 +- 1.0 points behind" in said
    assert "75.0 (trained with noise) and 80.0 (without)" in said


def test_a_run_is_reproducible_and_evaluation_leaves_the_model() -> None:
    digits = _demo.load_digits()
    with _demo.one_thread():
        models = [_demo.train(digits, 0.2, seed=0, epochs=1, progress=lambda text: None) for _ in range(2)]
    first, second = ([p.detach().clone() for p in model.parameters()] for model in models)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    law = _demo.absmax_noise(0.1)
    found = _demo.evaluate(models[0], digits, law, 3)
    assert found == _demo.evaluate(models[1], digits, law, 3)
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


def test_a_plot_that_cannot_be_written_is_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "missing" / "plot.png"
    assert main(["demo", "--output", str(path)]) == 1
    expected = f"weightnoise: cannot write the plot {path}: No such file or directory\n"
    assert capsys.readouterr().err == expected


def test_an_interrupted_run_leaves_no_file_and_restores_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        assert torch.get_num_threads() == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(_demo, "train", interrupt)
    threads = torch.get_num_threads()
    assert main(["demo", "--output", str(tmp_path / "plot.png")]) == 1
    assert capsys.readouterr().err == "weightnoise: interrupted\n"
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["demo", "--seeds", "0"], "must be a whole number of at least 1, not '0'"),
        (["demo", "--epochs", "many"], "must be a whole number of at least 1, not 'many'"),
        (["demo", "--draws", "1"], "must be a whole number of at least 2, not '1'"),
        (["demo", "--noise", "0"], "must be a number above 0, not '0'"),
        (["demo", "--noise", "nan"], "must be a number above 0, not 'nan'"),
        (["demo", "--noise", "x"], "must be a number above 0, not 'x'"),
        (["nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error:" in last
    assert problem in last


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"weightnoise {weightnoise.__version__}\n"


def test_help_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "demo" in capsys.readouterr().out
