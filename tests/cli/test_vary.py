"""Levels of the command line that are no factors: an option of a law, a function of the user's, names."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import weightnoise as wn
from tests.cli.test_cli import METRIC, MODEL, SWEEP, run, subject, written
from weightnoise._cli.notation import read_spec
from weightnoise._cli.values import levels
from weightnoise._cli.vary import read_laws
from weightnoise.laws._spec import as_law

__all__ = ["subject"]  # A fixture.

VARY = [*SWEEP[:4], "--draws", "3", "--out", "report.json"]


def in_python(levels: list[Any], law: Any) -> wn.RobustnessReport:
    import torch

    made = sys.modules["subject"]
    torch.manual_seed(0)
    return wn.evaluate_robustness(
        made.make_network(), made.metric, levels=levels, law=law, draws=3, progress=False
    )


def curves(path: Path) -> list[Any]:
    return list(written(path)["curves"].values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,25,3600", [0, 25, 3600]),
        ("-1 0.5", [-1, 0.5]),
        ("now=25,hour=3600.5", [("now", 25), ("hour", 3600.5)]),
        ("absmax,rms", ["absmax", "rms"]),
        ("largest=absmax 1e-3", [("largest", "absmax"), 0.001]),
        ("None,output", [("None", None), "output"]),
        ("off=None on=True,False", [("off", None), ("on", True), ("False", False)]),
        ("None,(64,64),big=(512, 512)", [("None", None), ("(64,64)", (64, 64)), ("big", (512, 512))]),
        ("((0.0,1.0),(2,)),[1,2]", [("((0.0,1.0),(2,))", ((0.0, 1.0), (2,))), ("[1,2]", [1, 2])]),
        ("'None',\"a, b\"", ["None", "a, b"]),
    ],
)
def test_levels_are_numbers_names_or_names_with_values(text: str, expected: list[Any]) -> None:
    found = levels(text)
    assert found == expected
    # A whole number stays one: a number of bits is no float.
    assert [type(level) for level in found] == [type(level) for level in expected]


@pytest.mark.parametrize("text", ["", ",", "nan", "(1", "1)", "(a,)", "a=(", "x=nan", "{1}", "f(2)", "'a", "1;2"])
def test_what_is_no_level_is_one_sentence(text: str, subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(*SWEEP[:4], "--law", "0.1", f"--levels={text}")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--levels: must be finite numbers, names, or values as in Python such as None or (64,64), not " in said


@pytest.mark.parametrize(
    ("law", "option", "levels", "values"),
    [
        ("Gaussian(0.1)", "relative_to", "None,absmax", [("None", None), "absmax"]),
        ("Gaussian(0.1, relative_to='absmax')", "tile", "whole=None,(2,2)", [("whole", None), ("(2,2)", (2, 2))]),
        ("Quantize(4)", "symmetric", "True,False", [("True", True), ("False", False)]),
        ("ProgrammingNoise()", "programming", "(),(0.5,1.0)", [("()", ()), ("(0.5,1.0)", (0.5, 1.0))]),
        ("ProgrammingNoise()", "compensate", "False,True,global", [("False", False), ("True", True), "global"]),
        ("StuckAt(0.1)", "levels", "absmax,(-1.0,1.0)", ["absmax", ("(-1.0,1.0)", (-1.0, 1.0))]),
        ("Gaussian(0.1, relative_to='absmax')", "per", "tensor,0,-1,output", ["tensor", 0, -1, "output"]),
    ],
)
def test_an_option_that_takes_no_number(
    law: str, option: str, levels: str, values: list[Any], subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = [*VARY, "--law", law, "--vary", option, f"--levels={levels}"]
    assert run(*sweep) == 0
    made: Any = as_law(read_spec(law))
    expected = in_python(values, lambda value: replace(made, **{option: value}))
    report = wn.RobustnessReport.from_json((subject / "report.json").read_text())
    assert report.levels == expected.levels
    assert report.values.tolist() == expected.values.tolist()
    capsys.readouterr()
    assert run(*sweep) == 0  # The same again is nothing to do.
    assert "report.json is complete" in capsys.readouterr().err


def test_a_value_that_an_option_cannot_have_is_one_sentence(
    subject: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*VARY, "--law", "Gaussian(0.1)", "--vary", "std", "--levels", "None,0.1") in (1, 2)
    assert capsys.readouterr().err.count("\n") == 1
    assert run(*VARY, "--law", "Gaussian(0.1)", "--levels", "None,0.1") == 2
    assert "must be numbers of at least 0, not None; for other values" in capsys.readouterr().err


def test_a_sweep_over_time_is_that_of_a_function(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    law = ["--law", "ProgrammingNoise()", "--vary", "time"]
    plot = ["--plot", "plot.svg", "--log-axis", "--axis", "seconds"]
    assert run(*VARY, *law, "--levels", "0,25,day=86400") == 0
    expected = in_python([0, 25, ("day", 86400)], lambda time: wn.ProgrammingNoise(time=time))
    report = wn.RobustnessReport.from_json((subject / "report.json").read_text())
    assert report.levels == (0.0, 25.0, "day")
    assert report.values.tolist() == expected.values.tolist()
    assert list(report.curves) == ["ProgrammingNoise()"]
    assert "day: ProgrammingNoise(time=86400)" in report.made_by["law"]
    assert "| day | " in capsys.readouterr().out
    assert run(*VARY, *law, "--levels", "0,25,86400", *plot, "--fresh") == 0
    drawn = (subject / "plot.svg").read_text()
    assert "<!-- seconds -->" in drawn
    assert run(*VARY, *law, "--levels", "0,25,86400", "--plot", "plot.svg") == 0
    assert "<!-- time -->" in (subject / "plot.svg").read_text()


@pytest.mark.parametrize(
    ("text", "option", "level", "expected"),
    [
        ("Quantize(8)", "bits", 3, wn.Quantize(3)),
        ("0.5", "std", 0.1, wn.Gaussian(0.1)),
        ("[Clip(2.0), Gaussian(0.1)]", "k", 3.0, wn.Chain((wn.Clip(3.0), wn.Gaussian(0.1)))),
        ("Protect(Quantize(8), 0.1)", "bits", 2, wn.Protect(wn.Quantize(2), 0.1)),
        ("{'0.*': Gaussian(0.1), '2.*': None}", "std", 2.0, {"0.*": wn.Gaussian(2.0), "2.*": None}),
        ("Gaussian(0.1)", "relative_to", "rms", wn.Gaussian(0.1, relative_to="rms")),
        ("[Gaussian(0.1), Gaussian(0.2)]", "std", 1.0, wn.Chain((wn.Gaussian(1.0), wn.Gaussian(1.0)))),
    ],
)
def test_the_option_is_that_of_each_law_that_has_it(text: str, option: str, level: Any, expected: Any) -> None:
    (law,) = read_laws([text], [], option).values()
    assert law(level) == expected


def test_a_law_may_be_a_function_of_the_level(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (subject / "functions.py").write_text(
        "import weightnoise as wn\ndef shifted(level):\n    return wn.Gaussian(1.0 + level)\nnothing = 3\n"
    )
    sweep = [*VARY, "--law", "functions:shifted"]
    assert run(*sweep, "--levels=-1,0.5") == 0
    assert curves(subject / "report.json") == [
        in_python([-1, 0.5], lambda x: wn.Gaussian(1.0 + x)).values.tolist()
    ]
    assert list(written(subject / "report.json")["curves"]) == ["shifted"]
    text = (subject / "functions.py").read_text()
    (subject / "functions.py").write_text(text.replace("1.0 + level", "2.0 + level"))
    sys.modules.pop("functions")
    import linecache

    linecache.clearcache()
    capsys.readouterr()
    assert run(*sweep, "--levels=-1,0.5") == 1
    assert "holds another sweep: code of the laws (there " in capsys.readouterr().err
    assert run(*VARY, "--law", "functions:nothing", "--levels", "1", "--fresh") == 2
    assert "functions:nothing is 3 (int); a function of the level is needed" in capsys.readouterr().err
    assert run(*sweep, "--levels", "1", "--vary", "std", "--fresh") == 2
    assert "--vary std is for laws, and shifted is a function of the level" in capsys.readouterr().err
    sys.modules.pop("functions")


def test_a_level_that_the_option_refuses_is_one_line(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*VARY, "--law", "Quantize(8)", "--vary", "bits", "--levels", "4,2.5") == 1
    said = capsys.readouterr().err
    assert said.startswith("weightnoise: Quantize(bits=...) must be a whole number")
    assert said.count("\n") == 1
    assert run("sweep", MODEL, "--metric", METRIC, "--levels", "1", "--vary", "std") == 2
    assert capsys.readouterr().err == "weightnoise: --vary std needs a law that has it: give --law\n"
    assert sys.modules["subject"].calls == 0


def test_another_option_is_another_sweep(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = [*VARY, "--levels", "0,25", "--law", "ProgrammingNoise()"]
    assert run(*sweep, "--vary", "time") == 0
    assert run(*sweep, "--vary", "g_max") == 1
    assert "holds another sweep: vary (there 'time', now 'g_max')" in capsys.readouterr().err


def test_the_largest_time_at_which_a_target_is_reached(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = ["tolerance", MODEL, "--metric", METRIC, "--law", "Gaussian(1.0)", "--draws", "4"]
    assert run(*search, "--at-most", "1.5") == 0
    scaled = capsys.readouterr().out.splitlines()[-1]
    assert run(*search, "--at-most", "1.5", "--vary", "std") == 0
    assert capsys.readouterr().out.splitlines()[-1] == scaled  # Of Gaussian(1.0) a level is the std.
