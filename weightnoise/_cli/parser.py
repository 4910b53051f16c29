"""The commands, their options and their help."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NoReturn

import weightnoise
from weightnoise._cli import demo as _demo

_ABOUT = """\
Noise on the weights of any PyTorch model.

  weightnoise demo     what training with noise buys, on real digits, in half a minute
  weightnoise plan     which parameters of a model of yours a spec would put noise on, and how much
  weightnoise sweep    how a model of yours holds up as the noise grows: a table, a report, a figure

Each has a page of its own: weightnoise sweep --help"""

_OBJECTS = """\
MODULE:NAME is what `from MODULE import NAME` would import; MODULE may be a file of the current directory,
without its .py. A model is a torch.nn.Module, or a function (or class) that returns one when it is called
without arguments: build it there and load its checkpoint. It runs your code. torch is seeded before."""

_NOTATION = """\
A law is written as in Python, and nothing of it is executed: Gaussian(0.1, relative_to="absmax"),
StuckAt(zero=0.01), a number for Gaussian, a list for laws one after the other, and a dict from patterns on
names to laws: {"encoder.*": Gaussian(0.02), "head.*": None}. JSON as of spec_to_config, or the name of a
.json file with it, do as well. JSON imports nothing: it may name laws of this library, modules of torch.nn,
functions of torch.nn.functional, and module classes and laws (dataclasses with draw and apply) of modules that
the command has imported for the model, the metric or --allow; functions of yours only with --allow. Quote it for
the shell: '...'."""

_EXITS = """\
Exit codes: 0 success, 1 failure (also of your code), 2 wrong usage, 130 interrupted."""

_PLAN = f"""\
Show what add_weight_noise would do to a model: which parameters get noise, of which law and which standard
deviation in units of the weight, and which stay clean.

{_OBJECTS}

{_NOTATION}"""

_PLAN_EXAMPLES = f"""\
Examples:
  weightnoise plan model:make_model --spec 0.01
  weightnoise plan torchvision.models:resnet18 --spec '{{"fc.*": None, "*": Gaussian(0.05, relative_to="absmax")}}'

{_EXITS}"""

_SWEEP = f"""\
Measure a model under noise: at each level a number of seeded draws ("chips"), each held for all that the
metric does. Draw k has the same random numbers at every level and under every law, so that laws compare in
pairs. Prints mean and standard error.

A level multiplies the strength of the law: with Gaussian(1.0, relative_to="absmax") the levels are standard
deviations as fractions of the largest weight of each layer; with ProgrammingNoise() they are multiples of the
noise of the device; with StuckAt(zero=1.0) they are shares of the weights.

{_OBJECTS}

The metric is a function that takes the model and returns a number, or a dict of numbers by name. It puts the
model in eval mode, and evaluates it on data of its choice:

  # model.py
  def make_model():
      model = Net(); model.load_state_dict(torch.load("net.pt")); return model

  @torch.no_grad()
  def accuracy(model):
      return (model.eval()(x).argmax(dim=1) == y).double().mean().item()

{_NOTATION}

A sweep with --out keeps what it has measured in that file, about once a second. Interrupted, it goes on from
there when the same command is given again, and ends with the same numbers to the last bit. Other options,
another model (its weights are compared), and another version of torch or weightnoise are refused. Whether the
metric and its data are the same is not checked."""

_SWEEP_EXAMPLES = f"""\
Examples:
  weightnoise sweep model:make_model --metric model:accuracy --levels 0,0.05,0.1,0.2 \\
      --law 'Gaussian(1.0, relative_to="absmax")' --law 'StuckAt(zero=1.0)' --out report.json --plot plot.png
  weightnoise sweep model:make_model --metric model:accuracy --levels 0.1 \\
      --law 'Gaussian(1.0, relative_to="absmax")' --by-parameter --plot sensitivity.png

In Python: weightnoise.RobustnessReport.from_json(open("report.json").read()).

{_EXITS}"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and keeps the lines of its help."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"weightnoise: error: {message} (see {self.prog} --help)\n")


def make_parser() -> Parser:
    """The whole command line."""
    parser = Parser(prog="weightnoise", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"weightnoise {weightnoise.__version__}")
    parser.set_defaults(traceback=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    debug = Parser(add_help=False)
    debug.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    _add_demo(commands, debug)
    _add_plan(commands, debug)
    _add_sweep(commands, debug)
    return parser


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
        type=_strength,
        default=_demo.TRAINING_NOISE,
        help="noise to train with, as a fraction of the largest weight of each layer",
    )
    demo.add_argument("--seeds", type=_count, default=5, help="networks trained of each kind")
    demo.add_argument("--epochs", type=_count, default=60, help="passes over the training images")
    demo.add_argument("--draws", type=_several, default=20, help="draws of noise at each level")
    demo.add_argument("--output", type=Path, default=Path("weightnoise-demo.png"), help="the PNG to write")


def _add_plan(commands: argparse._SubParsersAction[Parser], debug: Parser) -> None:
    plan = commands.add_parser(
        "plan",
        parents=[debug],
        help="show what a spec would do to a model",
        description=_PLAN,
        epilog=_PLAN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.add_argument("model", metavar="MODULE:FACTORY", help="the model, or a function that makes it")
    plan.add_argument("--spec", required=True, help="laws, or a .json file of them")
    _add_allow(plan)
    plan.add_argument(
        "--min-ndim",
        type=_whole,
        default=2,
        metavar="N",
        help="leave parameters with fewer dimensions clean, unless the spec names them (default: 2)",
    )


def _add_sweep(commands: argparse._SubParsersAction[Parser], debug: Parser) -> None:
    sweep = commands.add_parser(
        "sweep",
        parents=[debug],
        help="measure a model under noise that grows",
        description=_SWEEP,
        epilog=_SWEEP_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = sweep.add_argument
    add("model", metavar="MODULE:FACTORY", help="the model, or a function that makes it")
    add("--metric", required=True, metavar="MODULE:FUNCTION", help="what to measure")
    add(
        "--levels",
        required=True,
        nargs="+",
        type=_levels,
        metavar="LEVEL",
        help="factors on the strength: 0,0.1,0.2 or 0 0.1 0.2",
    )
    add(
        "--law",
        action="append",
        dest="laws",
        metavar="LAW",
        help="repeat it to compare; without it the noise that the model has",
    )
    _add_allow(sweep)
    add("--draws", type=_count, default=20, metavar="N", help="draws at each level (default: 20)")
    add("--seed", type=_whole, default=0, metavar="N", help="of the draws (default: 0)")
    add("--antithetic", action="store_true", help="use each draw twice, mirrored")
    add("--by-parameter", action="store_true", help="noise on one parameter at a time: which is most sensitive?")
    add("--threshold", type=_number, metavar="X", help="what the metric must reach: print the share of draws")
    add("--lower-is-better", action="store_true", help="the metric is a loss or an error")
    add("--out", type=Path, metavar="REPORT.json", help="keep the report here, and go on from it when interrupted")
    add("--fresh", action="store_true", help="start over, whatever --out holds")
    add("--plot", type=_figure, metavar="PLOT.png", help="draw the report (.png, .pdf or .svg; needs matplotlib)")


def _add_allow(command: Parser) -> None:
    command.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="a function or class of yours that JSON may name; repeat it for more",
    )


def _whole(text: str, least: int = 0) -> int:
    number = int(text) if text.isdecimal() else -1
    if number < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not {text!r}")
    return number


def _count(text: str) -> int:
    return _whole(text, least=1)


def _several(text: str) -> int:
    return _whole(text, least=2)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}")
    return number


def _strength(text: str) -> float:
    try:
        number = _number(text)
    except argparse.ArgumentTypeError:
        number = 0.0
    if number <= 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return number


def _levels(text: str) -> list[float]:
    levels = [_number(part) for part in text.replace(",", " ").split()]
    if not levels or min(levels) < 0:
        raise argparse.ArgumentTypeError(f"must be numbers of at least 0, not {text!r}")
    return levels


def _figure(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"must end in .png, .pdf or .svg, not {text!r}")
    return path
