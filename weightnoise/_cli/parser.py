"""The commands and their options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

import weightnoise
from weightnoise._cli import demo as _demo
from weightnoise._cli import help as _help
from weightnoise._cli import values as _values


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and keeps the lines of its help."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"weightnoise: error: {message} (see {self.prog} --help)\n")


def make_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="weightnoise", description=_help.ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"weightnoise {weightnoise.__version__}")
    parser.set_defaults(traceback=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    debug = Parser(add_help=False)
    debug.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    _add_demo(commands, debug)
    _add_plan(commands, debug)
    _add_sweep(commands, debug)
    _add_tolerance(commands, debug)
    _add_report(commands, debug)
    return parser


def _command(
    commands: argparse._SubParsersAction[Parser], debug: Parser, name: str, text: str, *aliases: str
) -> Parser:
    """A command with its texts in `_cli.help`, whose lines stay as they are."""
    return commands.add_parser(
        name,
        aliases=aliases,
        parents=[debug],
        help=text,
        description=getattr(_help, name.upper()),
        epilog=getattr(_help, f"{name.upper()}_EXAMPLES"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_demo(commands: argparse._SubParsersAction[Parser], debug: Parser) -> None:
    demo = commands.add_parser(
        "demo",
        parents=[debug],
        help="train a classifier of digits without and with weight noise, and compare the two under noise",
        description="Train a 64-128-64-10 network on the digits of scikit-learn, without and with Gaussian noise "
        "on its weights. Then measure both under three kinds of noise that grow, and under noise on one weight "
        "matrix at a time: each with several seeded draws, each draw held for the whole test set as if it were "
        "one chip. Prints tables, writes a figure. Takes about 20 seconds.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument(
        "--noise",
        type=_values.strength,
        default=_demo.TRAINING_NOISE,
        help="noise to train with, as a fraction of the largest weight of each layer",
    )
    demo.add_argument("--seeds", type=_values.count, default=5, help="networks trained of each kind")
    demo.add_argument("--epochs", type=_values.count, default=60, help="passes over the training images")
    demo.add_argument("--draws", type=_values.several, default=20, help="draws of noise at each level")
    demo.add_argument("--output", type=Path, default=Path("weightnoise-demo.png"), help="the PNG to write")


def _add_plan(commands: argparse._SubParsersAction[Parser], debug: Parser) -> None:
    plan = _command(commands, debug, "plan", "show what a spec would do to a model")
    plan.add_argument("model", metavar="MODULE:FACTORY", help="the model, or a function that makes it")
    plan.add_argument("--spec", required=True, help="laws, or a .json or .yaml file of them")
    _add_allow(plan)
    text = "plan noise on what modules put out or take in, and not on weights"
    plan.add_argument("--at", choices=("output", "input"), help=text)
    plan.add_argument(
        "--min-ndim",
        type=_values.whole,
        metavar="N",
        help="leave parameters with fewer dimensions clean, unless the spec names them (default: 2)",
    )


def _add_sweep(commands: argparse._SubParsersAction[Parser], debug: Parser) -> None:
    sweep = _command(commands, debug, "sweep", "measure a model under noise that grows")
    _add_subject(sweep)
    add = sweep.add_argument
    add(
        "--levels",
        required=True,
        nargs="+",
        type=_values.levels,
        metavar="LEVEL",
        help="factors on the strength: 0,0.1,0.2 or 0 0.1 0.2; with --vary values: 25,3600 or none=None,hour=3600",
    )
    add("--until-sem", type=_values.until, metavar="X", help="go on at this standard error: 0.01 or 2%%")
    add("--shard", type=_values.shard, metavar="K/N", help="measure the k-th of n parts of the draws; see merge")
    add("--by-parameter", action="store_true", help="noise on one parameter at a time: which is most sensitive?")
    _add_threshold(sweep)
    add("--lower-is-better", action="store_true", help="the metric is a loss or an error")
    _add_out(sweep)


def _add_tolerance(commands: argparse._SubParsersAction[Parser], debug: Parser) -> None:
    tolerance = _command(commands, debug, "tolerance", "find the largest noise at which a model reaches a target")
    _add_subject(tolerance)
    add = tolerance.add_argument
    add("--at-least", type=_values.number, metavar="X", help="the target of a metric that is good when high; or")
    add("--at-most", type=_values.number, metavar="X", help="that of a loss or an error")
    add("--quantile", type=_values.number, metavar="Q", help="of this quantile of the draws, not of the mean")
    add("--yield", type=_values.number, dest="chip_yield", metavar="SHARE", help="of this share of the draws")
    add(
        "--first",
        type=_values.strength,
        default=0.1,
        metavar="LEVEL",
        help="the level to try first (default: 0.1)",
    )
    add("--highest", type=_values.strength, metavar="LEVEL", help="the largest level to try")
    add(
        "--resolution", type=_values.strength, default=0.02, metavar="R", help="of the level (default: 0.02 of it)"
    )
    _add_out(tolerance)


def _add_report(commands: argparse._SubParsersAction[Parser], debug: Parser) -> None:
    report = _command(commands, debug, "report", "show a report, convert it, put several together", "merge")
    report.add_argument("reports", nargs="+", type=Path, metavar="REPORT.json", help="what sweeps have written")
    _add_threshold(report)
    text = "write it here (.json, .csv, .md or .html)"
    report.add_argument("--out", type=_values.table, metavar="OUT", help=text)
    _add_plot(report)


def _add_threshold(command: Parser) -> None:
    text = "what the metric must reach: print yield and worst"
    command.add_argument("--threshold", type=_values.number, metavar="X", help=text)


def _add_subject(command: Parser) -> None:
    """Options of what is measured, and in which draws."""
    add = command.add_argument
    add("model", metavar="MODULE:FACTORY", help="the model, or a function that makes it")
    add("--metric", required=True, metavar="MODULE:FUNCTION", help="what to measure")
    add(
        "--law",
        action="append",
        dest="laws",
        metavar="LAW",
        help="repeat it to compare; without it the noise that the model has",
    )
    add(
        "--vary",
        metavar="OPTION",
        help="the option of the law that levels are, such as time; without it they multiply the strength",
    )
    _add_allow(command)
    add("--draws", type=_values.count, default=20, metavar="N", help="draws at each level (default: 20)")
    add("--seed", type=_values.whole, default=0, metavar="N", help="of the draws (default: 0)")
    add("--antithetic", action="store_true", help="use each draw twice, mirrored")
    add(
        "--reads",
        choices=("held", "fresh"),
        default="held",
        help="fresh: read noise anew in each forward of a chip",
    )
    add("--jobs", type=_values.count, default=1, metavar="N", help="worker processes (default: 1)")


def _add_out(command: Parser) -> None:
    """Options of where the report goes."""
    add = command.add_argument
    add("--out", type=Path, metavar="REPORT.json", help="keep the report here, and go on from it when interrupted")
    add("--fresh", action="store_true", help="start over, whatever --out holds")
    _add_plot(command)


def _add_plot(command: Parser) -> None:
    """Options of the figure."""
    text = "draw the report (.png, .pdf or .svg; needs matplotlib)"
    command.add_argument("--plot", type=_values.figure, metavar="PLOT.png", help=text)
    command.add_argument("--axis", metavar="TEXT", help="what to write at the axis of the levels of the figure")
    command.add_argument("--log-axis", action="store_true", help="make that axis logarithmic")


def _add_allow(command: Parser) -> None:
    command.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="a function or class of yours that JSON may name; repeat it for more",
    )
