"""The command: what it runs, writes and draws, and that the page shows what was measured and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.benchmarks import plots, record
from tests.benchmarks.__main__ import main
from tests.benchmarks.measure import Row
from tests.benchmarks.options import Options, Section
from tests.benchmarks.processes import ROOT
from tests.benchmarks.sections import SECTIONS
from tests.benchmarks.workloads import TRAINED, WORKLOADS

READS = list(WORKLOADS)[-1]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = Path(__file__).parent / "results.json"


def timed(contender: str, **place: Any) -> Row:
    numbers = {"milliseconds": 2.0, "ratio": 1.5, "quartiles": [1.2, 1.8], "extra": 1.0, "ns": 0.5, "us": 3.0}
    return {"contender": contender, **numbers, **place}


def test_the_command_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text(
        "before\n<!-- benchmark: steps -->\nold\n<!-- end -->\nafter <!-- benchmark: peers -->\n<!-- end -->"
    )
    results.write_text(json.dumps({"peers": {"about": {"machine": record.machine(), "seconds": 1}, "rows": []}}))
    arguments = ["--sections", "steps", "--seconds", "0.05", "--threads", "1", "--workloads", READS]
    files = ["--markdown", str(page), "--json", str(results), "--plots", str(tmp_path)]
    assert main([*arguments, "--contenders", "weightnoise on", *files]) == 0
    out, err = capsys.readouterr()
    assert err == "steps\n"
    table = out[out.index(record.heading(record.machine())) : out.rindex("\n\n<!-- end -->")]
    assert f"| {READS} |" in table
    assert page.read_text() == (
        f"before\n<!-- benchmark: steps -->\n\n{table}\n\n<!-- end -->\n"
        "after <!-- benchmark: peers -->\n<!-- end -->"
    )
    found = json.loads(results.read_text())
    assert list(found) == ["peers", "steps"]
    assert found["steps"]["about"]["machine"]["torch"] == torch.__version__
    assert [row["contender"] for row in found["steps"]["rows"]] == ["plain", "weightnoise on"]
    assert found["steps"]["rows"][0]["ratio"] == 1.0
    assert all(row["rounds"] >= 5 for row in found["steps"]["rows"])
    assert (tmp_path / "benchmark-steps.png").exists()


def test_no_sections_show_what_was_measured_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    rows = [timed("plain", workload="one"), timed("weightnoise on", workload="one")]
    record.write({"steps": record.entry(rows, 1.0)}, results)
    assert main(["--sections", "--json", str(results), "--markdown", str(page)]) == 0
    assert "| one | 2.00 | 1.50 |" in page.read_text()
    assert capsys.readouterr().out == page.read_text()


def test_a_section_that_fails_takes_nothing_from_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(options: Options) -> list[Row]:
        raise RuntimeError("no memory")

    ran: list[str] = []

    def work(options: Options) -> list[Row]:
        ran.append((tmp_path / "results.json").read_text() if ran else "")
        return [{"found": 1}]

    parts = {"steps": work, "growth": fail, "memory": work}
    for name, run in parts.items():
        monkeypatch.setitem(SECTIONS, name, Section(run, lambda rows: f"{len(rows)} rows"))
    results = tmp_path / "results.json"
    assert main(["--sections", *parts, "--json", str(results)]) == 1
    assert list(json.loads(results.read_text())) == ["steps", "memory"]
    assert list(json.loads(ran[1])) == ["steps"]  # Written as soon as it was there.
    out, err = capsys.readouterr()
    assert "RuntimeError: no memory" in err
    assert out.count("1 rows") == 2


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = {"a": record.entry([{"x": 1.5}, {"x": None}], 2.0), "b": record.entry([], 1.0)}
    record.write(made, tmp_path / "results.json")
    assert record.read(tmp_path / "results.json") == made
    assert record.read(tmp_path / "none.json") == record.read(None) == {}


def test_machines_that_differ_are_told_apart() -> None:
    first, second = record.entry([], 1.0), record.entry([], 1.0)
    assert record.machines({"a": first, "b": second}) == f"{record.described(record.machine())}."
    second["about"]["machine"] = {**record.machine(), "processor": "Abacus", "threads": 1}
    lines = record.machines({"a": first, "b": second}).splitlines()
    assert lines[0].startswith("- a: ")
    assert lines[1].startswith("- b: Abacus, 1 thread, torch ")


@pytest.mark.parametrize(
    ("engine", "threads", "line"),
    [
        ("philox (AVX2)", 2, "*AVX2, 2 threads:*"),
        ("philox (AVX-512); on CUDA philox (Triton)", 1, "*AVX-512, 1 thread:*"),
        ("torch", 1, "*torch only, 1 thread:*"),
    ],
)
def test_the_instruction_set_stands_above_a_table(engine: str, threads: int, line: str) -> None:
    made = record.entry([timed("plain", workload="one")], 1.0)
    made["about"]["machine"] |= {"engine": engine, "threads": threads}
    assert record.blocks({"steps": made})["steps"].splitlines()[0] == line


def test_every_figure_is_drawn(tmp_path: Path) -> None:
    names = ["plain", *plots.STYLES]
    rows: dict[str, list[Row]] = {
        "steps": [timed(name, workload=place) for place in ("one", "two") for name in names],
        "growth": [timed(name, parameters=count) for count in (10, 100) for name in names],
        "tensors": [timed(name, tensors=count, width=32) for count in (10, 1000) for name in names],
        "peers": [
            {"peer": "one", "rows": [timed(name, model="m", what="step") for name in (*names[:2], "one")]},
            {"peer": "two", "error": "does not install"},
        ],
    }
    plots.draw_all({name: record.entry(found, 1.0) for name, found in rows.items()}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"benchmark-{name}.png" for name in plots.FIGURES}
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            assert image.width == 990
            assert len(image.getcolors() or []) > 10


def test_the_page_has_a_place_for_every_section_and_figure() -> None:
    page = PAGE.read_text()
    assert sorted(record.marks(page)) == sorted(["machine", *SECTIONS])
    for name in plots.FIGURES:
        assert f"(images/benchmark-{name}.png)" in page


def test_the_page_shows_what_was_measured() -> None:
    page = PAGE.read_text()
    assert record.fill(page, record.blocks(record.read(RESULTS))) == page


def test_the_readme_gives_the_range_that_was_measured() -> None:
    steps = record.read(RESULTS)["steps"]
    rows = [row for row in steps["rows"] if row["contender"] == "weightnoise on" and row["workload"] in TRAINED]
    ratios = [row["ratio"] for row in rows]
    count = ("four", "five", "six")[len(rows) - 4]
    told = f"{min(ratios):.2f} to {max(ratios):.2f} times as long on the {count} models"
    readme = (ROOT / "README.md").read_text()
    assert told in readme
    level = record.heading(steps["about"]["machine"]).strip("*:").partition(",")[0]
    assert f"with {level}." in readme
