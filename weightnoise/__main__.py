"""The command line: ``weightnoise``, or ``python -m weightnoise``."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

import weightnoise
from weightnoise._activations import noisy_activations
from weightnoise._cli import demo as _demo
from weightnoise._cli import demo_output as _cli_demo
from weightnoise._cli.load import CommandError, load_metric, load_model, read_spec
from weightnoise._cli.parser import make_parser
from weightnoise._cli.sweep import ResumableMetric
from weightnoise._errors import WeightNoiseError
from weightnoise._plan import plan_weight_noise
from weightnoise._random.philox import engine
from weightnoise._robustness.evaluate import evaluate_robustness
from weightnoise._robustness.metric import Metric, fingerprint
from weightnoise._robustness.report import RobustnessReport
from weightnoise._weights import noisy_parameters


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
    run = {"demo": _run_demo, "plan": _run_plan, "sweep": _run_sweep}[options.command]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            run(options)
    except KeyboardInterrupt:
        if options.traceback:
            traceback.print_exc()
        again = " without --fresh" if getattr(options, "fresh", False) else ""
        kept = getattr(options, "out", None) is not None
        _say(f"interrupted; the same command{again} goes on from here" if kept else "interrupted")
        return 130
    except Exception as error:
        if options.traceback:
            traceback.print_exc()
        _say(_line(error))
        return error.code if isinstance(error, CommandError) else 1
    return 0


def _say(text: str) -> None:
    print(f"weightnoise: {text}", file=sys.stderr)


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
    _say(f"{category.__name__}: {' '.join(str(message).split())}")


def _run_plan(options: argparse.Namespace) -> None:
    spec = read_spec(options.spec)
    print(plan_weight_noise(load_model(options.model), spec, min_ndim=options.min_ndim))


def _run_sweep(options: argparse.Namespace) -> None:
    if options.plot is not None:
        _check_extras("--plot", "matplotlib")
    laws = _read_laws(options.laws or [])
    model, metric = load_model(options.model, seed=options.seed), load_metric(options.metric)
    for path in filter(None, (options.out, options.plot)):
        _try_to_write(path)
    report = _measured(options, model, metric, laws)
    print(f"{report}{_yields(report)}")
    if options.out is not None:
        print(f"Report: {options.out}")
    if options.plot is not None:
        figure = report.plot(metric=options.metric.partition(":")[2])
        _write(options.plot, lambda: figure.savefig(options.plot, dpi=150))
        print(f"Plot: {options.plot}")


def _read_laws(texts: Sequence[str]) -> dict[str, Any]:
    laws: dict[str, Any] = {}
    for text in texts:
        law = read_spec(text)
        if _name(law) in laws:
            raise CommandError(f"--law {_name(law)} is given twice")
        laws[_name(law)] = law
    return laws


def _name(law: object) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(law))  # The same in another process.


def _measured(
    options: argparse.Namespace, model: nn.Module, metric: Metric, laws: Mapping[str, Any]
) -> RobustnessReport:
    """The report of this sweep, as far as it is not there yet."""
    settings: dict[str, Any] = {
        "levels": list(chain.from_iterable(options.levels)),
        "draws": options.draws,
        "seed": options.seed,
        "antithetic": options.antithetic,
        "by_parameter": options.by_parameter,
        "threshold": options.threshold,
        "higher_is_better": not options.lower_is_better,
    }
    noise = [*noisy_parameters(model).items(), *noisy_activations(model).items()]
    if not laws and not noise:
        raise CommandError("the model carries no noise of its own: give --law")
    about = {
        "model": options.model,
        "metric": options.metric,
        "laws": list(laws),
        **settings,
        "noise on the model": [f"{name}: {_name(law)}" for name, law in noise],
        "weights": fingerprint(model),
        "torch": torch.__version__,
        "weightnoise": weightnoise.__version__,
        "engine": engine().partition(" ")[0],  # Without its instruction set, which changes no number.
    }
    journal = ResumableMetric(metric, options.out, about, seed=options.seed, fresh=options.fresh)
    if journal.report is not None:
        _say(f"{options.out} is complete; --fresh measures again")
        return journal.report
    if journal.measured:
        _say(f"going on after {len(journal.measured)} evaluations")
    return journal.run(lambda: evaluate_robustness(model, journal, law=laws or None, **settings))


def _yields(report: RobustnessReport) -> str:
    """The share of draws that reach the threshold, a line for each curve."""
    if report.threshold is None:
        return ""
    lines = []
    for name in report.curves:
        shares = zip(report.levels, report[name].chip_yield.tolist(), strict=True)
        listed = ", ".join(f"{100 * share:.3g} % at {level:g}" for level, share in shares)
        lines.append(f"\ndraws that reach {report.threshold:g}, {name}: {listed}")
    return "".join(lines)


def _run_demo(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    _check_extras("the demo", "matplotlib", "sklearn")
    # First of all, so that a path that cannot be written costs no training.
    _try_to_write(options.output)
    progress = _Progress()
    try:
        results = _demo.run(options.noise, options.seeds, options.epochs, options.draws, progress.show)
    finally:
        progress.clear()
    print(f"{_cli_demo.tables(results)}\n\n{_cli_demo.verdict(results)}")
    _write(options.output, lambda: _cli_demo.plot(results, options.output))
    print(f"Plot: {options.output} ({time.perf_counter() - start:.0f} s)")


def _check_extras(what: str, *names: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(f"{what} needs {' and '.join(missing)}: pip install 'torch-weightnoise[demo]'")


def _write(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}", code=1) from None


def _try_to_write(path: Path) -> None:
    existed = path.exists()
    _write(path, lambda: path.open("ab").close())
    if not existed:
        path.unlink()


class _Progress:
    """One line on a terminal, renewed; a line every few seconds elsewhere."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.last = -10.0

    def show(self, text: str) -> None:
        now = time.monotonic()
        if now - self.last < (0.1 if self.terminal else 5.0):
            return
        self.last = now
        print(
            f"\r\x1b[K{text}" if self.terminal else text,
            end="" if self.terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def clear(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
