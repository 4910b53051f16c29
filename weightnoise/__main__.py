"""The command line: ``python -m weightnoise``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import weightnoise
from weightnoise import _demo


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process where None.

    Returns:
        The exit code: 0 for success, 1 for a failure, 2 for wrong usage.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if options.command is None:
        parser.print_help()
        return 0
    if missing := _demo.missing_extras():
        needs = " and ".join(missing)
        print(f"weightnoise: the demo needs {needs}: pip install 'torch-weightnoise[demo]'", file=sys.stderr)
        return 2
    try:
        return _run_demo(options)
    except OSError as error:
        print(f"weightnoise: cannot write the plot: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="weightnoise", description="Noise on the weights of any PyTorch model.")
    parser.add_argument("--version", action="version", version=f"weightnoise {weightnoise.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train a classifier of digits without and with weight noise, and compare the two under noise",
        description="Train a 64-128-64-10 network on the digits of scikit-learn twice, without and with Gaussian "
        "noise on its weights, then measure both under growing noise: each level with several seeded "
        "draws, each draw held for the whole test set as if it were one chip.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--seeds", type=_positive, default=5, help="networks trained of each kind")
    demo.add_argument("--epochs", type=_positive, default=60, help="passes over the training images")
    demo.add_argument("--draws", type=_several, default=20, help="draws of noise at each level")
    demo.add_argument("--output", type=Path, default=Path("weightnoise-demo.png"), help="the plot to write")
    return parser


def _positive(text: str, least: int = 1) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not {text!r}")
    return number


def _several(text: str) -> int:
    return _positive(text, least=2)


def _run_demo(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    progress = _Progress()
    try:
        # First of all, so that a path that cannot be written costs no training.
        options.output.touch()
        curves = _demo.run(options.seeds, options.epochs, options.draws, progress.show)
        _demo.plot(curves, options.output)
    finally:
        progress.clear()
    print(
        "Test accuracy (%) under Gaussian noise of a standard deviation of x times the largest weight of a layer\n"
    )
    print(_demo.table(curves))
    print(f"\n{_demo.verdict(curves, options.seeds, options.draws)}")
    print(f"Plot: {options.output} ({time.perf_counter() - start:.0f} s)")
    return 0


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
