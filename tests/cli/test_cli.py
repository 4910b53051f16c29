"""The command line: what it reads and says, how it ends, and how an interrupted sweep goes on."""

from __future__ import annotations

import importlib
import json
import linecache
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import weightnoise as wn
from weightnoise._cli import journal as _journal
from weightnoise._cli import parser as _cli_parser
from weightnoise._cli.files import write_whole
from weightnoise._cli.load import load_model
from weightnoise._cli.main import main
from weightnoise._cli.notation import read_spec
from weightnoise._cli.terminal import CommandError
from weightnoise.laws._spec import as_law

SUBJECT = """
import os, time, torch
from torch import nn

def make_network():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()

linear = torch.nn.Linear(2, 2)
x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
calls, stop_at, error = 0, None, KeyboardInterrupt

@torch.no_grad()
def metric(model):
    global calls
    calls += 1
    if calls == stop_at:
        raise error("no more")
    return model.eval()(x).sum()

def several(model):
    return {"sum": metric(model), "nothing": float("nan"), "largest": model(x).max().item()}

def random(model):
    return metric(model) + torch.rand(())

def waits(model):  # For signals: slow until something has been written, then waiting for its end.
    if os.path.exists("wait"):
        time.sleep(60 if os.path.exists("report.json") and "measured" in open("report.json").read() else 0.3)
    return metric(model)

def fails(model):
    return 1 / 0

def does_not_fit(model):
    return model(x.T).sum()

def says_nothing(model):
    pass
"""
MODEL, METRIC = "subject:make_network", "subject:metric"
SWEEP = ["sweep", MODEL, "--metric", METRIC, "--levels", "0,0.1,0.3", "--draws", "4", "--law", "Gaussian(1.0)"]
LEVELS = "finite numbers, names, or values as in Python such as None or (64,64)"
INTERRUPTED = "weightnoise: interrupted; the same command goes on from here"


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a module to name on the command line."""
    (tmp_path / "subject.py").write_text(SUBJECT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    sys.modules.pop("subject", None)


def run(*arguments: str, **changes: Any) -> int:
    """The command in a process that has imported nothing of the user's."""
    sys.modules.pop("subject", None)
    if changes:
        sys.path.insert(0, str(Path.cwd()))
        vars(importlib.import_module("subject")).update(changes)
    return main(arguments)


def lasting(path: Path) -> dict[str, Any]:
    """A report but for its date."""
    content = written(path)
    del content["made_by"]["date"], content["made_by"]["threads"]  # Those of a process.
    return content


def written(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("0.1", 0.1),
        ("Gaussian(0.1, relative_to='absmax')", wn.Gaussian(0.1, relative_to="absmax")),
        ("[Clip(low=-1, high=1.5), DropConnect(p=0.2)]", [wn.Clip(low=-1, high=1.5), wn.DropConnect(0.2)]),
        ("Protect(Quantize(8), 0.1)", wn.Protect(wn.Quantize(8), 0.1)),
        ("StuckAt(0.1, levels=(-1.0, 1.0), chip=None)", wn.StuckAt(0.1, levels=(-1.0, 1.0), chip=None)),
        ("{'a.*': None, 'b': Uniform(1), '*': 0.1}", {"a.*": None, "b": wn.Uniform(1), "*": 0.1}),
        ("{'class:torch.nn.LSTM': Gaussian(0.1)}", {nn.LSTM: wn.Gaussian(0.1)}),
        ('{"type": "DropConnect", "p": 0.2}', wn.DropConnect(0.2)),
        ('{"head.*": null, "*": [{"type": "Clip"}, 0.1]}', {"head.*": None, "*": [wn.Clip(), 0.1]}),
    ],
)
def test_a_law_is_read_in_pythons_notation_and_in_json(text: str, spec: Any, tmp_path: Path) -> None:
    assert read_spec(text) == spec
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(wn.spec_to_config(spec)))
    assert read_spec(str(path)) == spec


@pytest.mark.parametrize("law", [wn.ProgrammingNoise(time=60.0, read=()), wn.Chain((wn.Clip(), wn.Gaussian(0.1)))])
def test_a_law_is_read_as_it_prints_itself(law: wn.Noise) -> None:
    assert as_law(read_spec(repr(law))) == law


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Gausian(0.1)", "Gausian is no law, but Gaussian or LearnedGaussian would be"),
        ("Gaussian(-1)", "Gaussian(std=...) must be a finite number >= 0, got -1."),
        ("Gaussian(0.1, size=3)", "Gaussian.__init__() got an unexpected keyword argument 'size'"),
        ("Gaussian(*[0.1])", "'*[0.1]' is no law, number or text"),
        ("{**{}}", "'**' is no law, number or text"),
        ("Gaussian", "'Gaussian' is no law, number or text"),
        ("torch.load('x')", "\"torch.load('x')\" is no law, number or text"),
        ("as_law(0.1)", "as_law is no law, but "),
        ("'abc'", "'abc' (str) is no law. Give a number, "),
        ("[]", "[] must be a list of one or more laws"),
        ("Gaussian(", "'(' was never closed; give Gaussian(0.1, "),
        ("{'*': 0.1, '*': 0.2}", "'*' stands twice"),
        ('{"*": 0.1, "*": 0.2}', "'*' stands twice"),
        ("Custom(open('made', 'w'))", "open is no law"),
    ],
)
def test_what_is_no_law_is_one_line_and_never_executed(
    text: str, problem: str, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", MODEL, "--spec", text]) == 2
    said = capsys.readouterr().err
    assert said.startswith("weightnoise: cannot read the law ")
    assert problem in said
    assert said.count("\n") == 1
    assert not (subject / "made").exists()


def test_a_spec_that_is_not_there_or_says_nothing(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", MODEL, "--spec", "no.json"]) == 2
    assert capsys.readouterr().err == "weightnoise: cannot read no.json: No such file or directory\n"
    assert main(["plan", MODEL, "--spec", "None"]) == 2
    assert capsys.readouterr().err == "weightnoise: 'None' is no law.\n"


YAML = """
encoder.*: {type: Gaussian, std: 1e-3, relative_to: absmax}
"class:torch.nn.LSTM":  # With a comment.
  - {type: Clip, k: 2.5}
  - 1E-1
head.*: null
"""


@pytest.mark.parametrize("ending", ["yaml", "yml"])
def test_a_spec_in_yaml(
    ending: str, subject: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = subject / f"spec.{ending}"
    path.write_text(YAML)
    assert read_spec(str(path)) == {
        "encoder.*": wn.Gaussian(0.001, relative_to="absmax"),
        nn.LSTM: [wn.Clip(2.5), 0.1],
        "head.*": None,
    }
    path.write_text("- {match: 0.*, law: {_target_: weightnoise.Gaussian, std: 0.1}}\n- {match: '*', law: 0.2}\n")
    assert read_spec(str(path)) == {"0.*": wn.Gaussian(0.1), "*": 0.2}
    for text, problem in {
        "{": "while parsing a flow node",
        "'*': 0.1\n'*': 0.2": "'*' stands twice",
        "a: !!python/object/apply:os.system [touch made]": "could not determine a constructor for the tag",
        "? [a]\n: 0.1": "unhashable",
    }.items():
        path.write_text(text)
        assert main(["plan", MODEL, "--spec", path.name]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"weightnoise: cannot read the law 'spec.{ending}': ")
        assert problem in said
        assert said.count("\n") == 1
    assert not (subject / "made").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["plan", MODEL, "--spec", path.name]) == 2
    said = capsys.readouterr().err
    assert said == f"weightnoise: spec.{ending} needs PyYAML: pip install pyyaml, or write it as JSON\n"


def test_a_model_is_a_module_or_what_makes_one(subject: Path) -> None:
    assert isinstance(load_model("subject:make_network"), nn.Sequential)
    assert load_model("subject:linear") is sys.modules["subject"].linear
    assert isinstance(load_model("torch.nn:Identity"), nn.Identity)
    with pytest.raises(CommandError, match=r"(?s)subject:x is tensor\(.*\(Tensor\); a torch.nn.Module is needed"):
        load_model("subject:x")


@pytest.mark.parametrize(
    ("reference", "code", "problem"),
    [
        ("subject", 2, "'subject' is not of the form MODULE:NAME, such as model:make_model."),
        ("subject:", 2, "'subject:' is not of the form MODULE:NAME, such as model:make_model."),
        ("subject.py:model", 2, "there is no module 'subject.py' in {here} or installed; leave .py out"),
        ("nothing.at.all:model", 2, "there is no module 'nothing.at.all' in {here} or installed"),
        ("subject:make_networc", 2, "there is no 'make_networc' in subject; closest names: 'make_network'"),
        ("subject:linear.wait", 2, "there is no 'wait' in subject:linear; closest names: 'weight'"),
        ("lacking:model", 1, "ModuleNotFoundError: No module named 'lacked' (lacking.py, line 2; {all})"),
        ("raising:model", 1, "ZeroDivisionError: division by zero (raising.py, line 1; {all})"),
        ("wrong:model", 1, "SyntaxError: invalid syntax (wrong.py, line 1)"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(
    reference: str, code: int, problem: str, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (subject / "lacking.py").write_text("\nimport lacked")
    (subject / "raising.py").write_text("1 / 0")
    (subject / "wrong.py").write_text("x = = 1")
    assert main(["plan", reference, "--spec", "0.1"]) == code
    expected = problem.replace("{here}", str(subject)).replace("{all}", "--traceback shows all")
    assert capsys.readouterr().err == f"weightnoise: {expected}\n"


def test_plan_prints_the_plan(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec: Any = {"0.*": wn.Gaussian(0.1, relative_to="absmax"), "2.bias": wn.Uniform(1.0)}
    assert run("plan", MODEL, "--spec", repr(spec)) == 0
    torch.manual_seed(0)
    model = sys.modules["subject"].make_network()
    assert capsys.readouterr().out == f"{wn.plan_weight_noise(model, spec)}\n"
    assert run("plan", MODEL, "--spec", "0.2", "--at", "input") == 0
    assert capsys.readouterr().out == f"{wn.plan_activation_noise(model, 0.2, at='input')}\n"
    assert run("plan", MODEL, "--spec", "0.2", "--at", "input", "--min-ndim", "1") == 2
    assert "--min-ndim is about weights" in capsys.readouterr().err
    assert run("plan", MODEL, "--spec", "0.1", "--min-ndim", "1") == 0
    assert "4 of 4 parameters noisy" in capsys.readouterr().out


def test_what_the_library_refuses_is_one_line(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", MODEL, "--spec", "{'encoder': 0.1, 'head': 0.2}") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Pattern 'encoder' matches no parameter." in said
    assert "Pattern 'head' matches no parameter." in said


def test_a_sweep_is_evaluate_robustness(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--law", "{'2.*': Uniform(1)}", "--antithetic", "--seed", "3", "--threshold", "0.2"]
    assert run(*SWEEP, *options, "--out", "report.json", "--plot", "plot.PNG") == 0
    torch.manual_seed(3)
    laws: dict[str, Any] = {
        "Gaussian(std=1.0)": wn.Gaussian(1.0),
        "{'2.*': Uniform(bound=1)}": {"2.*": wn.Uniform(1)},
    }
    made = sys.modules["subject"]
    settings: dict[str, Any] = {
        "levels": [0.0, 0.1, 0.3],
        "draws": 4,
        "seed": 3,
        "antithetic": True,
        "threshold": 0.2,
    }
    expected = wn.evaluate_robustness(made.make_network(), made.metric, laws=laws, **settings)
    found = wn.RobustnessReport.from_json((subject / "report.json").read_text())
    assert {**found.to_dict(), "made_by": 0} == {**expected.to_dict(), "made_by": 0}
    assert {**found.made_by, "date": ""} == {**expected.made_by, "date": ""}
    assert (subject / "plot.PNG").read_bytes().startswith(b"\x89PNG")
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{expected}"[:-30])
    assert captured.out.endswith("Report: report.json\nPlot: plot.PNG\n")
    assert captured.err == ""
    assert sorted(path.name for path in subject.iterdir()) == ["plot.PNG", "report.json", "subject.py"]


def test_options_of_a_sweep_reach_the_evaluation(subject: Path) -> None:
    assert run(*SWEEP, "--by-parameter", "--lower-is-better", "--out", "report.json") == 0
    report = written(subject / "report.json")
    assert list(report["curves"]) == ["0.weight", "2.weight"]
    assert report["higher_is_better"] is False


@pytest.mark.parametrize("levels", [["0,0.1,0.3"], ["0", "0.1", "0.3"], ["0, 0.1", "0.3"]])
def test_levels_have_commas_or_spaces_between_them(levels: list[str]) -> None:
    options = _cli_parser.make_parser().parse_args(["sweep", "m:f", "--metric", "m:g", "--levels", *levels])
    assert [level for part in options.levels for level in part] == [0.0, 0.1, 0.3]


def test_a_sweep_of_the_noise_on_the_model(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (subject / "noisy.py").write_text(
        "import subject, weightnoise as wn\ndef make(std=1.0):\n"
        "    return wn.add_weight_noise(subject.make_network(), wn.Gaussian(std))\n"
    )
    assert run(*SWEEP, "--out", "plain.json") == 0
    sweep = ["sweep", "noisy:make", *SWEEP[2:-2], "--out", "noisy.json"]
    assert run(*sweep) == 0
    plain, noisy = written(subject / "plain.json"), written(subject / "noisy.json")
    assert noisy["curves"]["noise"] == plain["curves"]["Gaussian(std=1.0)"]
    sys.modules["noisy"].make.__defaults__ = (2.0,)
    capsys.readouterr()
    assert run(*sweep) == 1
    assert (
        "noisy.json holds another sweep: noise on the model (there ['0.weight: Gaussian(std=1.0)'"
        in capsys.readouterr().err
    )
    assert run(*SWEEP[:-2]) == 2
    assert capsys.readouterr().err == "weightnoise: the model carries no noise of its own: give --law\n"
    sys.modules.pop("noisy")


@pytest.mark.filterwarnings("ignore::weightnoise.NondeterministicMetricWarning")
@pytest.mark.parametrize("metric", ["metric", "several", "random"])
@pytest.mark.parametrize("stops", [[1], [2], [3], [4], [11], [5, 2, 3]])
def test_an_interrupted_sweep_goes_on_and_ends_the_same_to_the_last_bit(
    metric: str, stops: list[int], subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = [*SWEEP, "--metric", f"subject:{metric}"]
    assert run(*sweep, "--out", "whole.json") == 0
    calls = sys.modules["subject"].calls
    out = capsys.readouterr().out
    done = 0
    for stop in stops:
        assert run(*sweep, "--out", "report.json", stop_at=stop) == 130
        assert capsys.readouterr().err.splitlines()[-1] == INTERRUPTED
        done += stop - 1
        kept = written(subject / "report.json")["measured"] if done else []
        assert len(kept) == done
    assert run(*sweep, "--out", "report.json") == 0
    assert sys.modules["subject"].calls == calls - done  # Nothing is measured twice.
    captured = capsys.readouterr()
    dated = re.compile(r"date \S+")
    assert dated.sub("", captured.out) == dated.sub("", out.replace("whole", "report"))
    assert captured.err == (f"weightnoise: going on after {done} evaluations\n" if done else "")
    assert lasting(subject / "report.json") == lasting(subject / "whole.json")


def test_it_goes_on_after_an_error_too(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SWEEP, "--out", "report.json", stop_at=6, error=MemoryError) == 1
    assert (
        capsys.readouterr().err
        == "weightnoise: MemoryError: no more (subject.py, line 17; --traceback shows all)\n"
    )
    assert run(*SWEEP, "--out", "report.json") == 0
    assert sys.modules["subject"].calls == 11 - 5


def until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_goes_on_after_a_signal(number: signal.Signals, subject: Path) -> None:
    sweep = [*SWEEP, "--metric", "subject:waits"]
    command = [sys.executable, "-m", "weightnoise", *sweep, "--out", "report.json"]
    (subject / "wait").touch()

    def listen() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Which what runs in the background of a script ignores.

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen) as process:
        until((subject / "report.json").exists)
        time.sleep(0.2)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert said == (f"{INTERRUPTED}\n" if number == signal.SIGINT else "")
    assert 3 <= len(written(subject / "report.json")["measured"]) < 11
    (subject / "wait").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "going on after" in done.stderr
    assert run(*sweep, "--out", "whole.json") == 0
    assert lasting(subject / "report.json") == lasting(subject / "whole.json")


@pytest.mark.parametrize("stop", [None, 5])
@pytest.mark.parametrize(
    ("change", "differing"),
    [
        (["--levels", "0.1"], "levels"),
        (["--draws", "3", "--seed", "1"], "weights, seed, draws"),  # The seed makes the model.
        (["--law", "Uniform(1.0)"], "laws"),
        (["--metric", "subject:random"], "metric, code of the metric"),
        (["--antithetic"], "antithetic"),
        (["--by-parameter"], "by_parameter"),
    ],
)
def test_another_sweep_is_refused(
    stop: int | None, change: list[str], differing: str, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = [*SWEEP, "--out", "report.json"]
    assert run(*sweep, stop_at=stop) == (130 if stop else 0)
    before = (subject / "report.json").read_bytes()
    capsys.readouterr()
    assert run(*sweep, *change) == 1
    said = capsys.readouterr().err
    assert said.startswith("weightnoise: report.json holds another sweep: ")
    assert said.endswith(". Give another --out, or --fresh to overwrite it.\n")
    assert re.findall(r"(?:; |sweep: )([a-z_ ]+) \(there ", said) == differing.split(", ")
    assert (subject / "report.json").read_bytes() == before


@pytest.mark.parametrize(("engine", "code"), [("philox (AVX2)", 0), ("torch", 1)])
def test_another_engine_is_refused_and_other_instructions_are_not(
    engine: str, code: int, subject: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = [*SWEEP, "--out", "report.json"]
    monkeypatch.setattr("weightnoise._cli.subject.engine", lambda: "philox (AVX-512)")
    assert run(*sweep, stop_at=5) == 130
    monkeypatch.setattr("weightnoise._cli.subject.engine", lambda: engine)
    assert run(*sweep) == code
    assert ("holds another sweep: engine (there 'philox', now 'torch')." in capsys.readouterr().err) == bool(code)


def test_another_model_is_refused_and_fresh_starts_over(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = [*SWEEP, "--out", "report.json"]
    assert run(*sweep, stop_at=5) == 130
    text = SUBJECT.replace("nn.Linear(5, 2)", "nn.Linear(5, 4)")
    (subject / "subject.py").write_text(text)
    capsys.readouterr()
    assert run(*sweep) == 1
    assert "holds another sweep: weights (there " in capsys.readouterr().err
    assert run(*sweep, "--fresh", stop_at=1) == 130  # Nothing is measured: nothing is lost.
    assert "the same command without --fresh goes on from here" in capsys.readouterr().err
    assert len(written(subject / "report.json")["measured"]) == 4
    assert run(*sweep, "--fresh") == 0
    assert sys.modules["subject"].calls == 11
    assert run(*sweep) == 0
    assert sys.modules["subject"].calls == 0
    assert "report.json is complete; --fresh measures again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        ("return model.eval()(x).sum()", "return model.eval()(x).mean()", 1),
        ("    return model.eval()(x).sum()", "    # Of the outputs.\n    return model.eval()( x ).sum()", 0),
    ],
)
def test_a_metric_that_was_changed_is_refused(
    before: str, after: str, code: int, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linecache.clearcache()
    sweep = [*SWEEP, "--out", "report.json"]
    assert run(*sweep, stop_at=5) == 130
    (subject / "subject.py").write_text(SUBJECT.replace(before, after))
    linecache.clearcache()
    capsys.readouterr()
    assert run(*sweep) == code
    assert ("holds another sweep: code of the metric (there " in capsys.readouterr().err) == bool(code)
    linecache.clearcache()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sweep": 3}', "\x00"])
def test_a_file_of_something_else_is_left_alone(
    content: str, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (subject / "report.json").write_text(content)
    assert run(*SWEEP, "--out", "report.json") == 1
    expected = "report.json is there and holds no sweep. Give another --out, or --fresh to overwrite it."
    assert capsys.readouterr().err == f"weightnoise: {expected}\n"
    assert (subject / "report.json").read_text() == content
    assert run(*SWEEP, "--out", "report.json", "--fresh") == 0


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_whole(path, "before")

    def break_down(_: int) -> None:
        assert path.read_text() == "before"
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", break_down)
        with pytest.raises(CommandError, match=r"cannot write .*report.json: disk full"):
            write_whole(path, "after" * 1000)
    assert path.read_text() == "before"
    write_whole(path, "after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_answers_are_kept_as_they_come(subject: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(_journal, "write_whole", lambda path, text: kept.append(json.loads(text)))
    monkeypatch.setattr(_journal, "_INTERVAL", 1000.0)
    assert run(*SWEEP, "--out", "report.json") == 0
    assert len(kept) == 1  # A fast metric is not slowed down by writing.
    monkeypatch.setattr(_journal, "_INTERVAL", 0.0)
    assert run(*SWEEP, "--out", "report.json", "--fresh") == 0
    assert [len(content.get("measured", ())) for content in kept[1:]] == [*range(1, 12), 0]


def test_an_error_in_the_users_code_is_one_line_or_a_traceback(
    subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*SWEEP, "--metric", "subject:fails") == 1
    line = SUBJECT.splitlines().index("    return 1 / 0") + 1
    expected = f"ZeroDivisionError: division by zero (subject.py, line {line}; --traceback shows all)"
    assert capsys.readouterr().err == f"weightnoise: {expected}\n"
    assert run(*SWEEP, "--metric", "subject:fails", "--traceback") == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):\n")
    assert said.endswith(f"weightnoise: {expected}\n")
    assert run(*SWEEP, "--metric", "subject:does_not_fit") == 1
    # Not where in torch it was raised.
    line = SUBJECT.splitlines().index("    return model(x.T).sum()") + 1
    assert f"(3x4 and 3x5) (subject.py, line {line}; --traceback shows all)" in capsys.readouterr().err
    assert run(*SWEEP, "--metric", "subject:says_nothing") == 1
    assert (
        "weightnoise: The metric must return a number or a dict of numbers, not None." in capsys.readouterr().err
    )


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SWEEP, "--metric", "subject:random") == 0
    said = capsys.readouterr().err
    assert said.startswith("weightnoise: NondeterministicMetricWarning: The metric differs between two runs ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (
            ["--levels", "0,x"],
            2,
            "--levels multiply the strength of a law and must be numbers of at least 0, not 'x'; for other values "
            "of an option of the law, name it: --vary OPTION",
        ),
        (["--levels", "-1"], 2, "must be numbers of at least 0, not -1; "),
        (["--levels", "one=-1"], 2, "must be numbers of at least 0, not -1; "),
        (["--levels", "nan"], 2, f"error: argument --levels: must be {LEVELS}, not 'nan'"),
        (
            ["--levels", "1=Infinity"],
            2,
            f"error: argument --levels: must be {LEVELS}, not 'Infinity'",
        ),
        (["--levels", "=2"], 2, f"error: argument --levels: must be {LEVELS}, not '=2'"),
        (["--levels", ","], 2, f"error: argument --levels: must be {LEVELS}, not ','"),
        (["--vary", "time"], 2, "--vary time: Gaussian(std=1.0) has no such option, but 'gradient', 'per', "),
        (["--law", "2", "--vary", "p"], 2, "--vary p: Gaussian(std=1.0) has no such option, but 'gradient', "),
        (["--log-axis"], 2, "--log-axis is about a figure: give --plot too"),
        (["--axis", "dose"], 2, "--axis is about a figure: give --plot too"),
        (["--levels", "1", "--plot", "plot.png", "--log-axis"], 2, "--log-axis needs two levels or more"),
        (["--levels", "a=1,b=2", "--plot", "plot.png", "--log-axis"], 2, "and numbers without names"),
        (["--draws", "0"], 2, "error: argument --draws: must be a whole number of at least 1, not '0'"),
        (["--plot", "plot.txt"], 2, "error: argument --plot: must end in .png, .pdf or .svg, not 'plot.txt'"),
        (["--law", "Gaussian(std=1.0)"], 2, "--law Gaussian(std=1.0) is given twice"),
        (["--out", "no/report.json"], 1, "cannot write no/report.json: No such file or directory"),
        (["--plot", "no/plot.png"], 1, "cannot write no/plot.png: No such file or directory"),
        (["--law", "0.1", "--by-parameter"], 1, "by_parameter=True) needs a single law"),
        (["--law", "StuckAt(1.0)", "--levels", "2"], 1, "StuckAt(zero=1.0) scaled by 2 would have a rate of 2"),
    ],
)
def test_wrong_options_are_one_line(
    arguments: list[str], code: int, problem: str, subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found: Any = run(*SWEEP, *arguments)
    except SystemExit as left:
        found = left.code
    assert found == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("weightnoise: ")
    assert problem in captured.err
    assert captured.err.count("\n") == 1
    assert [path.name for path in subject.iterdir()] == ["subject.py"]


def test_a_plot_without_matplotlib(
    subject: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(*SWEEP, "--plot", "plot.png") == 2
    expected = "--plot needs matplotlib: pip install 'torch-weightnoise[demo]'"
    assert capsys.readouterr().err == f"weightnoise: {expected}\n"


@pytest.mark.parametrize("command", ["demo", "plan", "sweep", "tolerance", "report", "merge"])
def test_help_teaches_with_examples_that_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    examples = re.findall(r"^  weightnoise ((?:.*\\\n)*.*)", text, flags=re.MULTILINE)
    assert len(examples) == {"demo": 0, "plan": 3, "sweep": 3, "tolerance": 2, "report": 3, "merge": 3}[command]
    for example in examples:
        options = _cli_parser.make_parser().parse_args(shlex.split(example.replace("\\\n", " ")))
        assert options.command in (command, "report", "merge")
        for spec in [options.spec] if command == "plan" else getattr(options, "laws", []):
            assert read_spec(spec) is not None
    if examples:
        assert "Exit codes: 0 success, 1 failure" in text
    assert max(map(len, text.splitlines())) < 120
