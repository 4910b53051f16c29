"""Reports that are shown, converted, put together and drawn; sweeps that go on from a finished one."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import weightnoise as wn
from tests.cli.test_cli import SWEEP, lasting, run, subject, written

__all__ = ["subject"]  # A fixture.

OUT = [*SWEEP, "--out", "report.json"]


def read(path: Path) -> wn.RobustnessReport:
    return wn.RobustnessReport.from_json(path.read_text())


def test_a_report_is_shown_without_the_model(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*OUT) == 0
    first = capsys.readouterr().out.partition("Report:")[0]
    (subject / "subject.py").unlink()
    assert run("report", "report.json") == 0
    assert capsys.readouterr() == (first, "")
    assert run("report", "report.json", "--threshold", "0.5", "--plot", "plot.svg", "--axis", "dose") == 0
    assert "Gaussian(std=1.0): yield" in capsys.readouterr().out
    drawn = (subject / "plot.svg").read_text()
    assert all(f"<!-- {text} -->" in drawn for text in ("dose", "metric", "threshold", "without noise"))


def test_a_report_is_written_in_other_forms(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*OUT) == 0
    report = read(subject / "report.json")
    for ending, text in {
        "json": report.to_json(),
        "csv": report.to_csv(),
        "md": report.to_markdown("mean", "interval", "worst") + "\n",
    }.items():
        assert run("report", "report.json", "--out", f"other.{ending}") == 0
        assert (subject / f"other.{ending}").read_text() == text
    with (subject / "other.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == report.values.flatten().tolist()
    assert run("report", "report.json", "--out", "other.html", "--log-axis") == 0
    page = (subject / "other.html").read_text()
    assert "<h1>metric</h1>" in page
    assert "<img" in page
    capsys.readouterr()
    before = (subject / "report.json").read_text()
    assert run("report", "report.json", "--out", "report.json") == 2
    assert capsys.readouterr().err == "weightnoise: report.json is one of the reports: give another --out\n"
    assert (subject / "report.json").read_text() == before
    with pytest.raises(SystemExit):
        run("report", "report.json", "--out", "other.txt")
    assert "argument --out: must end in .json, .csv, .md or .html, not 'other.txt'" in capsys.readouterr().err


def test_a_tolerance_is_shown_with_its_sentence(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = ["tolerance", *SWEEP[1:4], "--law", "Gaussian(1.0)", "--draws", "4", "--at-most", "1.5"]
    assert run(*search, "--out", "found.json") == 0
    sentence = capsys.readouterr().out.splitlines()[-2]
    assert sentence.startswith("Up to level ")
    assert run("report", "found.json") == 0
    assert capsys.readouterr().out.splitlines()[-1] == sentence


def test_other_seeds_are_put_together(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["sweep", "subject:linear", "--metric", "subject:small", *SWEEP[4:]]
    text = (subject / "subject.py").read_text()
    text = text.replace("linear = torch", "torch.manual_seed(0)\nlinear = torch")  # The same for each seed.
    (subject / "subject.py").write_text(f"{text}\ndef small(model):\n    return model(torch.ones(2)).sum()\n")
    for seed in ("0", "1"):
        assert run(*sweep, "--seed", seed, "--out", f"{seed}.json") == 0
    assert run("report", "0.json", "1.json", "--out", "both.json") == 0
    assert read(subject / "both.json").values.tolist() == (
        read(subject / "0.json").merge(read(subject / "1.json")).values.tolist()
    )


@pytest.mark.parametrize(
    "content", ["", "[", "3", "[]", '{"curves": 3}', '{"curves": {"a": [[1.0]]}, "levels": [1, 2]}']
)
def test_what_is_no_report_is_one_sentence(
    content: str, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (subject / "report.json").write_text(content)
    assert run("report", "report.json") == 1
    said = capsys.readouterr().err
    assert said.startswith("weightnoise: report.json holds no report: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("metric", ["metric", "several", "random"])
@pytest.mark.parametrize("options", [[], ["--by-parameter"], ["--antithetic"]], ids=str)
@pytest.mark.filterwarnings("ignore::weightnoise.NondeterministicMetricWarning")
def test_more_draws_go_on_from_a_finished_sweep(
    options: list[str], metric: str, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = [*SWEEP, *options, "--metric", f"subject:{metric}"]
    assert run(*sweep, "--draws", "6", "--out", "whole.json") == 0
    whole = sys.modules["subject"].calls
    assert run(*sweep, "--draws", "4", "--out", "report.json") == 0
    part = sys.modules["subject"].calls
    capsys.readouterr()
    assert run(*sweep, "--draws", "6", "--out", "report.json") == 0
    assert capsys.readouterr().err == "weightnoise: going on from what is in report.json\n"
    assert sys.modules["subject"].calls == whole - part  # Nothing is measured twice.
    assert lasting(subject / "report.json") == lasting(subject / "whole.json")
    before = (subject / "report.json").read_text()
    assert run(*sweep, "--draws", "4", "--out", "report.json") == 1
    assert "report.json holds another sweep: draws (there 6, now 4)." in capsys.readouterr().err
    assert (subject / "report.json").read_text() == before


def test_another_threshold_measures_nothing(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*OUT) == 0
    capsys.readouterr()
    assert run(*OUT, "--threshold", "0.5") == 0
    assert sys.modules["subject"].calls == 0
    assert "Gaussian(std=1.0): yield" in capsys.readouterr().out
    assert written(subject / "report.json")["threshold"] == 0.5
    assert run(*OUT, "--threshold", "0.7", "--lower-is-better") == 0
    assert sys.modules["subject"].calls == 0
    assert read(subject / "report.json").higher_is_better is False
    capsys.readouterr()
    assert run(*OUT, "--threshold", "0.7", "--lower-is-better") == 0
    assert "report.json is complete" in capsys.readouterr().err


def test_an_early_stop_goes_on_as_if_there_had_been_more_draws_at_once(subject: Path) -> None:
    sweep = [*SWEEP, "--until-sem", "0.05"]
    assert run(*sweep, "--draws", "60", "--out", "whole.json") == 0
    assert run(*sweep, "--draws", "22", "--out", "report.json") == 0
    assert read(subject / "report.json").draws.tolist() != read(subject / "whole.json").draws.tolist()
    assert run(*sweep, "--draws", "60", "--out", "report.json") == 0
    assert lasting(subject / "report.json") == lasting(subject / "whole.json")


def test_an_interrupted_extension_loses_nothing(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*OUT, "--draws", "6", "--out", "whole.json") == 0
    assert run(*OUT) == 0
    before = (subject / "report.json").read_text()
    assert run(*OUT, "--draws", "6", stop_at=1) == 130
    assert (subject / "report.json").read_text() == before  # Nothing new was measured.
    assert run(*OUT, "--draws", "6", stop_at=3) == 130
    assert "measured" in written(subject / "report.json")
    assert run(*OUT, "--draws", "6") == 0
    assert sys.modules["subject"].calls == 2
    assert lasting(subject / "report.json") == lasting(subject / "whole.json")


@pytest.mark.parametrize("options", [[], ["--antithetic"], ["--by-parameter"]], ids=str)
@pytest.mark.parametrize("more", ["8", "10", "14"])
@pytest.mark.parametrize("count", [2, 3])
def test_more_draws_go_on_from_finished_shards(
    count: int, more: str, options: list[str], subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = [*SWEEP, *options]
    assert run(*sweep, "--draws", more, "--out", "whole.json") == 0
    whole = sys.modules["subject"].calls
    names = [f"{place}.json" for place in range(1, count + 1)]
    shards = [[*sweep, "--shard", f"{name[0]}/{count}", "--out", name] for name in names]
    calls = 0
    for draws in ("6", more):
        for shard in shards:
            assert run(*shard, "--draws", draws) == 0
            calls += sys.modules["subject"].calls
    # Nothing is measured twice, but for level 0 and the two runs without noise.
    by_itself = 1 + 2 if "--by-parameter" not in options else 2 + 2
    assert calls == whole + by_itself * (count - 1)
    capsys.readouterr()
    assert run("merge", *names, "--out", "merged.json") == 0
    assert capsys.readouterr().err == ""
    merged, asked = lasting(subject / "merged.json"), lasting(subject / "whole.json")
    assert merged == {name: value for name, value in asked.items() if name in merged}
    assert run(*shards[0], "--draws", "6") == 1
    assert f"holds another sweep: draws (there {more}, now 6)." in capsys.readouterr().err
    assert run(*shards[0], "--draws", more, "--threshold", "0.5") == 0


def test_shards_of_fewer_draws_are_named(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, draws in (("1", "8"), ("2", "4")):
        assert run(*SWEEP, "--draws", draws, "--shard", f"{place}/2", "--out", f"{place}.json") == 0
    capsys.readouterr()
    assert run("merge", "1.json", "2.json", "--out", "both.json") == 0
    assert (
        capsys.readouterr().err == "weightnoise: 2.json is of 4 draws, and others are of 8: give it more --draws\n"
    )
    assert read(subject / "both.json").chips == tuple((0, draw) for draw in (0, 1, 2, 3, 4, 6))


DAMAGED: list[Any] = [("without noise", ...), ("without noise", [3]), ("asked", 3), ("asked", {"draws": "x"})]


@pytest.mark.parametrize(("key", "value"), DAMAGED)
def test_damaged_settings_are_one_sentence(
    key: str, value: Any, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*OUT) == 0
    content = {**written(subject / "report.json"), key: value}
    if value is ...:
        del content[key]
    (subject / "report.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert run(*OUT) == 1
    said = capsys.readouterr().err
    assert "is damaged. Give another --out" in said or "holds no sweep. Give another --out" in said


@pytest.mark.parametrize("stop", [3, 4, 6, 9])
@pytest.mark.parametrize("metric", ["metric", "several"])
@pytest.mark.parametrize("options", [[], ["--by-parameter"], ["--antithetic"], ["--until-sem", "0.01"]], ids=str)
def test_an_unfinished_sweep_is_shown_as_far_as_it_has_come(
    options: list[str], metric: str, stop: int, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = [*OUT, *options, "--metric", f"subject:{metric}"]
    assert run(*sweep, stop_at=stop) == 130
    capsys.readouterr()
    if stop == 3:
        assert run("report", "report.json") == 1
        assert capsys.readouterr().err == (
            "weightnoise: report.json is not finished, and nothing is measured yet: give its command again\n"
        )
    else:
        assert run("report", "report.json") == 0
        shown = capsys.readouterr()
        # Two runs without noise; level 0 is one draw; what follows has four draws for each of two levels.
        curves = 2 if "--by-parameter" in options else 1
        assert shown.err == (
            f"weightnoise: report.json is not finished: {stop - 3} of {curves * 9} draws are measured; "
            "its command goes on from there\n"
        )
        assert "stopped early" not in shown.out
    assert run(*sweep) == 0
    whole = read(subject / "report.json")
    assert run(*sweep, "--fresh", stop_at=stop) == 130
    if stop > 3:
        assert run("report", "report.json", "--out", "so-far.json") == 0
        part = read(subject / "so-far.json")
        assert part.made_by.items() >= {k: v for k, v in whole.made_by.items() if k != "date"}.items()
        for name, values in part.curves.items():
            mask = part.measured[name]
            assert values[mask].tolist() == pytest.approx(whole.curves[name][mask].tolist(), nan_ok=True, abs=0)


def test_an_unfinished_shard_is_merged_with_a_finished_one(
    subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, stop in ((1, None), (2, 5)):
        assert run(*SWEEP, "--shard", f"{place}/2", "--out", f"{place}.json", stop_at=stop) in (0, 130)
    capsys.readouterr()
    assert run("merge", "1.json", "2.json", "--out", "both.json") == 0
    assert "2.json is not finished: 2 of 5 draws are measured" in capsys.readouterr().err
    assert read(subject / "both.json").draws.tolist() == [4, 3, 2]


def test_an_unfinished_tolerance_is_shown(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = ["tolerance", *SWEEP[1:4], "--law", "Gaussian(1.0)", "--draws", "4", "--at-most", "1.5"]
    assert run(*search, "--out", "found.json", stop_at=9) == 130
    capsys.readouterr()
    assert run("report", "found.json") == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("weightnoise: found.json is not finished: ")
    assert " draws are measured; its command goes on from there\n" in shown.err
    assert "| level |" in shown.out


PLACES: list[tuple[str, ...]] = [
    *(
        (name,)
        for name in ("sweep", "asked", "made_by", "chips", "curves", "levels", "seed", "threshold", "clean")
    ),
    *(("sweep", name) for name in ("metric", "vary", "shard")),
    ("made_by", "date"),
    ("higher_is_better",),
    ("tolerance",),
    ("done",),
]


@pytest.mark.parametrize("junk", [3, "x", [], {}, [3], [[1]], {"a": 1}, True], ids=str)
@pytest.mark.parametrize("place", PLACES, ids=".".join)
@pytest.mark.parametrize("stop", [None, 6], ids=["finished", "unfinished"])
def test_a_damaged_report_is_one_sentence(
    stop: int | None, place: tuple[str, ...], junk: Any, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*OUT, "--shard", "1/2", stop_at=stop) in (0, 130)
    content = written(subject / "report.json")
    inside = content
    if stop is not None and place[0] not in ("sweep", "asked"):
        inside = content["so far"]
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = junk
    (subject / "bad.json").write_text(json.dumps(content))
    for command in (["report", "bad.json"], ["merge", "report.json", "bad.json"]):
        capsys.readouterr()
        code = run(*command)
        said = capsys.readouterr().err
        assert "Error" not in said
        assert code == 0 or (code == 1 and said.count("\n") == 1 and "bad.json" in said)
