"""Files of the command line: whole or not at all, one process at a time, and one sentence where it fails."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import weightnoise as wn
from tests.cli.test_cli import SWEEP, run, subject, written
from weightnoise._cli.files import locked, write_whole
from weightnoise._cli.main import main
from weightnoise._cli.terminal import CommandError

__all__ = ["subject"]  # A fixture.

OUT = [*SWEEP, "--out", "report.json"]
HOLDS = """
import sys, time
from pathlib import Path
from weightnoise._cli.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(subject: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock of report.json."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, "report.json"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report.json", "link.json", "folder/../report.json"])
@pytest.mark.parametrize("options", [[], ["--fresh"]])
def test_two_sweeps_on_one_file_lock_each_other_out(
    name: str, options: list[str], holder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder").mkdir()
    Path("link.json").symlink_to("report.json")
    sweep = [*SWEEP, "--out", name, *options]
    assert run(*sweep) == 1
    assert capsys.readouterr().err == (
        f"weightnoise: another sweep is writing {name}: wait for it, or give another --out\n"
    )
    assert not Path("report.json").exists()
    holder.kill()  # The lock goes with its process, and what it has left is in nobody's way.
    holder.wait()
    assert run(*sweep) == 0
    assert written(Path("report.json"))["curves"]
    assert sorted(path.name for path in Path().iterdir()) == ["folder", "link.json", "report.json", "subject.py"]


def test_another_file_is_free(holder: subprocess.Popen[str]) -> None:
    assert run(*SWEEP, "--out", "other.json") == 0


@pytest.mark.slow
def test_of_many_that_start_at_once_one_has_the_lock_at_a_time(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom weightnoise._cli.files import locked\n"
        "from weightnoise._cli.terminal import CommandError\nend = time.monotonic() + 2\n"
        "while time.monotonic() < end:\n"
        "    try:\n"
        "        with locked(Path('file')):\n"
        "            Path('one').open('x').close()\n"  # Fails where another has it too.
        "            os.unlink('one')\n"
        "    except CommandError:\n"
        "        pass\n"
    )
    several = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) for _ in range(3)]
    assert [process.wait() for process in several] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom weightnoise._cli.files import locked\n"
        "with locked(Path('file')):\n"
        "    if os.fork() == 0:\n"
        "        os.closerange(0, 3)\n"  # Nobody waits for what it might still say.
        "        time.sleep(120)\n"
        "    os._exit(0)\n"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    program = "import sys\nfrom pathlib import Path\nfrom weightnoise._cli.files import locked\n"
    taken = subprocess.run(
        [sys.executable, "-c", f"{program}with locked(Path('file')): pass"], cwd=tmp_path, check=False
    )
    assert taken.returncode == 0
    assert time.monotonic() - start < 100


def test_writers_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, names = tmp_path / "report.json", []

    def look(_: int) -> None:
        names.append({one.name for one in tmp_path.iterdir()})
        if len(names) == 1:
            write_whole(path, "inner")  # Another one, in the middle of this.

    monkeypatch.setattr("os.fsync", look)
    write_whole(path, "outer")
    assert path.read_text() == "outer"
    assert len(names[1]) == 2
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_points_to_is_written(there: bool, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    real, link = tmp_path / "store" / "real.json", tmp_path / "link.json"
    link.symlink_to(real)
    if there:
        real.write_text("before")
    write_whole(link, "after")
    assert link.is_symlink()
    assert real.read_text() == "after"


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize("stop", [None, 5])
def test_a_full_disk_is_one_sentence(
    stop: int | None, subject: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise FULL

    assert run(*OUT) == 0
    before = (subject / "report.json").read_bytes()
    monkeypatch.setattr("os.fsync", full)
    capsys.readouterr()
    assert run(*OUT, "--fresh", stop_at=stop) == 1
    assert capsys.readouterr().err == "weightnoise: cannot write report.json: No space left on device\n"
    assert (subject / "report.json").read_bytes() == before
    assert sorted(path.name for path in subject.iterdir()) == ["report.json", "subject.py"]


@pytest.mark.parametrize("option", ["--out", "--plot"])
@pytest.mark.parametrize("there", [True, False])
def test_a_read_only_folder_is_one_sentence_before_anything_is_measured(
    option: str, there: bool, subject: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, opened = "file.png", Path.open

    def refused(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "x" in mode:
            raise READ_ONLY
        return opened(path, mode, *args, **kwargs)

    if there:
        (subject / name).write_text("something")
    monkeypatch.setattr(Path, "open", refused)
    assert run(*SWEEP, option, name) == 1
    assert capsys.readouterr().err == f"weightnoise: cannot write {name}: Read-only file system\n"
    assert sys.modules["subject"].calls == 0


@pytest.mark.parametrize("name", ["folder", "no/such.png", "subject.py/file.png"])
def test_what_is_no_place_for_a_file_is_one_sentence(
    name: str, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (subject / "folder").mkdir()
    assert run(*SWEEP, "--out", name) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"weightnoise: cannot write {name}: ")
    assert said.count("\n") == 1
    assert sys.modules["subject"].calls == 0


DAMAGED: list[Any] = [
    ("curves", 3),
    ("curves", {"Gaussian(std=1.0)": [[1.0]]}),
    ("curves", {"Gaussian(std=1.0)": [[1.0], [2.0], ["x"]]}),
    ("curves", {"Gaussian(std=1.0)": [[1.0], [2.0], [3.0, 4.0]]}),
    ("levels", None),
    ("levels", [["a"], "b", "c"]),
    ("seed", ...),
]


@pytest.mark.parametrize(("key", "value"), DAMAGED)
def test_a_damaged_report_is_one_sentence(
    key: str, value: Any, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*OUT) == 0
    content = written(subject / "report.json")
    content[key] = value
    if value is ...:
        del content[key]
    text = json.dumps(content)
    (subject / "report.json").write_text(text)
    capsys.readouterr()
    assert run(*OUT) == 1
    expected = "weightnoise: report.json is damaged. Give another --out, or --fresh to overwrite it.\n"
    assert capsys.readouterr().err == expected
    assert (subject / "report.json").read_text() == text
    with pytest.raises(wn.SpecError, match=r"^This is no report of RobustnessReport.to_dict, or a damaged one: "):
        wn.RobustnessReport.from_json(text)


@pytest.mark.parametrize("measured", [3, [3], [{"": "x"}], [{"": None}], [[]]])
def test_damaged_answers_are_one_sentence(
    measured: Any, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*OUT, stop_at=5) == 130
    content = written(subject / "report.json") | {"measured": measured}
    (subject / "report.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert run(*OUT) == 1
    assert "report.json is damaged. Give another --out" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "3", "[]", "null", '{"curves": []}'])
def test_what_is_no_report_is_one_sentence(text: str) -> None:
    with pytest.raises(wn.SpecError, match=r"^This is no report of RobustnessReport.to_"):
        wn.RobustnessReport.from_json(text)


def test_a_file_that_is_no_text(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (subject / "law.json").write_bytes(b"\xff\xfe\x80")
    assert run("plan", SWEEP[1], "--spec", "law.json") == 2
    assert capsys.readouterr().err == "weightnoise: cannot read law.json: it is no text\n"
    (subject / "report.json").write_bytes(b"\xff\xfe\x80")
    assert run(*OUT) == 2
    assert capsys.readouterr().err == "weightnoise: cannot read report.json: it is no text\n"


def test_a_folder_that_cannot_be_locked_is_said(
    subject: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("weightnoise._cli.files._take", without)
    with locked(subject / "report.json"):
        pass
    assert "report.json cannot be locked (No locks available): start no second" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "sweep"])
def test_json_names_what_is_allowed(command: str, subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (subject / "own.py").write_text("def half(weight):\n    return weight / 2")
    (subject / "law.json").write_text('{"type": "Custom", "fn": {"function": "own:half"}}')
    arguments = [command, *SWEEP[1:-2]] if command == "sweep" else [command, SWEEP[1]]
    arguments += ["--law" if command == "sweep" else "--spec", "law.json"]
    assert run(*arguments) == 2
    assert "names no function of a module that is imported." in capsys.readouterr().err
    assert "own" not in sys.modules
    assert run(*arguments, "--allow", "own:half") == 0
    sys.modules.pop("own")


def test_a_spec_in_json_runs_no_command(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (subject / "law.json").write_text('{"type": "subprocess.Popen", "args": "touch made", "shell": true}')
    assert main(["plan", SWEEP[1], "--spec", "law.json"]) == 2
    assert "'subprocess.Popen' is no law: nothing was called." in capsys.readouterr().err
    assert not (subject / "made").exists()


def test_an_error_of_writing_has_a_code(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as caught:
        write_whole(tmp_path / "no" / "file", "")
    assert caught.value.code == 1
