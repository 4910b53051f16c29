"""Sweeps over several processes and machines: the same bits, and nothing that does not belong together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import SWEEP, lasting, run, subject, written

__all__ = ["subject"]


@pytest.mark.parametrize("options", [[], ["--antithetic"], ["--by-parameter"]], ids=str)
@pytest.mark.parametrize("count", [2, 3])
def test_shards_put_together_are_the_whole(
    count: int, options: list[str], subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = [*SWEEP, *options, "--draws", "6"]
    assert run(*sweep, "--out", "whole.json") == 0
    names = [f"part-{place}.json" for place in range(1, count + 1)]
    for place, name in enumerate(names, 1):
        assert run(*sweep, "--shard", f"{place}/{count}", "--out", name) == 0
    capsys.readouterr()
    assert run("merge", *reversed(names), names[0], "--out", "merged.json") == 0
    merged, whole = lasting(subject / "merged.json"), lasting(subject / "whole.json")
    assert merged == {name: value for name, value in whole.items() if name in merged}
    assert set(whole) - set(merged) == {"asked", "sweep", "without noise"}
    captured = capsys.readouterr()
    assert captured.out.endswith("Report: merged.json\n")
    assert captured.err == ""
    assert run("merge", *names[1:]) == 0
    assert capsys.readouterr().err == f"weightnoise: shards that are missing: 1/{count}\n"


def test_what_does_not_belong_together_is_named_by_path(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SWEEP, "--out", "a.json") == 0
    assert run(*SWEEP[:-1], "Uniform(1.0)", "--seed", "1", "--out", "b.json") == 0
    assert run(*SWEEP, "--seed", "2", "--out", "c.json", stop_at=5) == 130
    capsys.readouterr()
    assert run("merge", "a.json", "b.json") == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "weightnoise: a.json and b.json do not belong together: law (Gaussian(std=1.0) and Uniform("
    )
    assert "model (" in said
    assert run("merge", "a.json", "c.json") == 1
    assert "a.json and c.json do not belong together: model (" in capsys.readouterr().err
    changed = written(subject / "a.json")
    changed["curves"]["Gaussian(std=1.0)"][1][2] = 7.0
    (subject / "d.json").write_text(json.dumps(changed))
    assert run("merge", "a.json", "d.json") == 1
    assert "a.json d.json: Draw 2 of seed 0 has two values" in capsys.readouterr().err
    (subject / "e.json").write_text("[")
    for name, text in (("e.json", "e.json holds no report: "), ("f.json", "cannot read f.json: ")):
        assert run("merge", "a.json", name) in (1, 2)
        assert capsys.readouterr().err.startswith(f"weightnoise: {text}")


@pytest.mark.parametrize("wrong", ["0/2", "3/2", "2", "a/b", "1/2/3"])
def test_a_wrong_shard(wrong: str, subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(*SWEEP, "--shard", wrong)
    assert f"--shard: must be K/N, such as 2/8, not '{wrong}'" in capsys.readouterr().err
    assert run(*SWEEP, "--shard", "5/9") == 2
    assert "--shard 5/9 has none of the 4 draws" in capsys.readouterr().err


@pytest.mark.slow
def test_jobs_have_the_bits_of_one_process(subject: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Data and model come from the random numbers of the module, which the workers draw again.
    text = (
        (subject / "subject.py").read_text().replace("torch.linspace(-1, 1, 12, dtype=", "torch.randn(12, dtype=")
    )
    (subject / "subject.py").write_text(text)
    assert run(*SWEEP, "--out", "whole.json") == 0
    assert run(*SWEEP, "--jobs", "2", "--out", "report.json") == 0
    assert lasting(subject / "report.json") == lasting(subject / "whole.json")
