"""The demo runs, writes its plot, is honest about its errors, and shows what it claims."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

import weightnoise
from weightnoise._cli import demo as _demo
from weightnoise._cli import demo_output as _cli_demo
from weightnoise._cli.main import main


def test_a_small_run_prints_the_table_and_writes_a_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plot.png"
    threads = torch.get_num_threads()
    assert main(["demo", "--seeds", "1", "--epochs", "2", "--draws", "3", "--output", str(path)]) == 0
    assert torch.get_num_threads() == threads
    assert path.read_bytes().startswith(b"\x89PNG")
    captured = capsys.readouterr()
    *tables, _ = captured.out.split("\n\n")
    columns = [[f"{level:g}" for level in one.levels] for one in _demo.CONDITIONS]
    for table, expected in zip(tables, [*columns, ["0.weight", "2.weight", "4.weight"]], strict=True):
        _, head, *rows = table.splitlines()
        assert head.split() == ["trained", "with", *expected]
        assert [row.split("  ")[0] for row in rows] == ["no noise", "noise 0.2"]
        assert [row.count("+-") for row in rows] == [len(expected)] * 2
    *lines, last = captured.out.splitlines()
    assert max(map(len, lines)) < 80
    assert last.startswith(f"Plot: {path} (")
    assert "of 1 network under 3 seeded draws" in " ".join(captured.out.split())
    assert captured.err.startswith("network 1/2 (no noise): epoch 1/2, loss ")


@pytest.mark.slow
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
    results = _demo.run(noise=0.2, seeds=3, epochs=60, draws=20, progress=lambda text: None)
    # With 5 networks they are 18.0 +- 1.5, 14.0 +- 0.9 and 9.5 +- 0.7 ahead at the last levels.
    for (plain, noisy), least in zip(results.conditions, (8.0, 6.0, 4.0), strict=True):
        gap = _demo.Curve("gap", noisy.values - plain.values)
        for index in (2, 3, 4):
            # With 3 networks of each kind a standard error is itself known to a factor of 2 only, so the
            # smallest of the 3 paired differences has to be positive as well.
            assert gap.mean[index] > 2 * gap.error[index], index
            assert gap.values[index].mean(dim=1).min() > 0, index
        assert gap.mean[-1] > least
        assert gap.mean[0].abs() < 1.0  # Expected: clean accuracy stays within a point.
    plain, noisy = results.alone
    assert (noisy.mean > plain.mean).all()
    assert results.parameters[int(plain.mean.argmin())] == "4.weight"


def made_up(change: torch.Tensor) -> _demo.Results:
    """Networks of 80 per cent, and what they have when they are trained with noise."""
    values = torch.full((5, 2, 3), 80.0)
    alone = values[:3] - torch.tensor([5.0, 9.0, 2.0])[:, None, None]
    pairs = [[_demo.Curve("no noise", part), _demo.Curve("noise 0.2", part + change)] for part in (values, alone)]
    return _demo.Results([pairs[0]] * 3, ("a", "b", "c"), pairs[1])


def test_the_verdict_does_not_hide_a_loss() -> None:
    said = " ".join(_cli_demo.verdict(made_up(torch.tensor([[-4.0], [-6.0]]))).split())
    assert "trained with noise stand at 75.0, the others at 80.0." in said
    assert (
        "those trained with noise are 5.0 +- 1.0 points behind (Gaussian noise); 5.0 +- 1.0 points behind" in said
    )
    assert "The most sensitive matrix is b (trained with no noise) and b (trained with noise 0.2)." in said
    assert "points ahead" in _cli_demo.verdict(made_up(torch.tensor([[4.0], [6.0]])))


def test_tables_and_panels_show_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = made_up(torch.tensor([[4.0], [6.0]]))
    assert _cli_demo.tables(results).splitlines()[-3:] == [
        "trained with           a           b           c",
        "no noise    75.0 +- 0.0 71.0 +- 0.0 78.0 +- 0.0",
        "noise 0.2   80.0 +- 1.0 76.0 +- 1.0 83.0 +- 1.0",
    ]
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    (tmp_path / "plot.png").write_bytes(_cli_demo.plot(results))
    axes: list[Any] = drawn[0].axes
    *panels, bars = axes
    for condition, panel in zip(_demo.CONDITIONS, panels, strict=True):
        assert panel.get_xlabel() == condition.unit
        for line, height in zip(panel.lines, (80.0, 85.0), strict=True):
            assert list(line.get_xdata()) == list(condition.levels)
            assert list(line.get_ydata()) == [height] * 5
    assert [bar.get_height() for bar in bars.patches] == [75.0, 71.0, 78.0, 80.0, 76.0, 83.0]
    assert [text.get_text() for text in bars.get_xticklabels()] == ["a", "b", "c"]


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
    assert len(set(_demo.evaluate(models[0], digits, None, 3))) == 1


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
    expected = f"weightnoise: cannot write {path}: No such file or directory\n"
    assert capsys.readouterr().err == expected


def test_an_interrupted_run_leaves_no_file_and_restores_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        assert torch.get_num_threads() == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(_demo, "train", interrupt)
    threads = torch.get_num_threads()
    assert main(["demo", "--output", str(tmp_path / "plot.png")]) == 130
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
    said = capsys.readouterr().err
    assert said.startswith("weightnoise: error: ")
    assert problem in said
    assert said.count("\n") == 1


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"weightnoise {weightnoise.__version__}\n"


def test_help_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "demo" in capsys.readouterr().out
