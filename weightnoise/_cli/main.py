"""The command line: which command runs, and what is said when it fails."""

from __future__ import annotations

import argparse
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from weightnoise._activation_plan import plan_activation_noise
from weightnoise._cli import demo as _demo
from weightnoise._cli import demo_output as _cli_demo
from weightnoise._cli.files import try_to_write, write_whole
from weightnoise._cli.load import load_allowed, load_model
from weightnoise._cli.notation import read_spec
from weightnoise._cli.parser import make_parser
from weightnoise._cli.report import run_report
from weightnoise._cli.sweep import run_sweep, run_tolerance
from weightnoise._cli.terminal import CommandError, Progress, check_extras, say
from weightnoise._errors import WeightNoiseError
from weightnoise._plan import plan_weight_noise


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process where None.

    Returns:
        The exit code: 0 for success, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C.
    """
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.command is None:
        parser.print_help()
        return 0
    commands = {
        "demo": _run_demo,
        "plan": _run_plan,
        "sweep": run_sweep,
        "tolerance": run_tolerance,
        "report": run_report,
        "merge": run_report,
    }
    run = commands[options.command]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            run(options)
    except KeyboardInterrupt:
        if options.traceback:
            traceback.print_exc()
        again = " without --fresh" if getattr(options, "fresh", False) else ""
        kept = getattr(options, "out", None) is not None
        say(f"interrupted; the same command{again} goes on from here" if kept else "interrupted")
        return 130
    except Exception as error:
        if options.traceback:
            traceback.print_exc()
        say(_line(error))
        return error.code if isinstance(error, CommandError) else 1
    return 0


def _line(error: Exception) -> str:
    """An error in one line; where it happened, if it is not one of ours."""
    if isinstance(error, WeightNoiseError):
        return " ".join(error.problems)
    text = " ".join(str(error).split())
    if isinstance(error, CommandError):
        return text
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {text}"  # It has the place in it.
    places = traceback.extract_tb(error.__traceback__)
    # The last one in the user's code, if it lies where the command is given.
    place = next((one for one in reversed(places) if Path(one.filename).parent == Path.cwd()), places[-1])
    where = f"{Path(place.filename).name}, line {place.lineno}; --traceback shows all"
    return f"{type(error).__name__}: {text} ({where})"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    say(f"{category.__name__}: {' '.join(str(message).split())}")


def _run_plan(options: argparse.Namespace) -> None:
    model = load_model(options.model)  # First: a spec may name what its module defines.
    spec: Any = read_spec(options.spec, load_allowed(options.allow))
    if options.at is not None:
        if options.min_ndim is not None:
            raise CommandError("--min-ndim is about weights, and --at about what modules put out or take in")
        print(plan_activation_noise(model, spec, at=options.at))
    else:
        print(plan_weight_noise(model, spec, min_ndim=2 if options.min_ndim is None else options.min_ndim))


def _run_demo(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    check_extras("the demo", "matplotlib", "sklearn")
    # First of all, so that a path that cannot be written costs no training.
    try_to_write(options.output)
    progress = Progress()
    try:
        results = _demo.run(options.noise, options.seeds, options.epochs, options.draws, progress.show)
    finally:
        progress.clear()
    print(f"{_cli_demo.tables(results)}\n\n{_cli_demo.verdict(results)}")
    write_whole(options.output, _cli_demo.plot(results))
    print(f"Plot: {options.output} ({time.perf_counter() - start:.0f} s)")
