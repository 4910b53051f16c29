"""The command line: ``python -m weightnoise``."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
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
    except KeyboardInterrupt:
        print("weightnoise: interrupted", file=sys.stderr)
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
        "draws, each draw held for the whole test set as if it were one chip. Takes about 20 seconds.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument(
        "--noise",
        type=_strength,
        default=_demo.TRAINING_NOISE,
        help="noise to train with, as a fraction of the largest weight of each layer",
    )
    demo.add_argument("--seeds", type=_positive, default=5, help="networks trained of each kind")
    demo.add_argument("--epochs", type=_positive, default=60, help="passes over the training images")
    demo.add_argument("--draws", type=_several, default=20, help="draws of noise at each level")
    demo.add_argument("--output", type=Path, default=Path("weightnoise-demo.png"), help="the plot to write, a PNG")
    return parser


def _positive(text: str, least: int = 1) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not {text!r}")
    return number


def _several(text: str) -> int:
    return _positive(text, least=2)


def _strength(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return number


def _run_demo(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    # First of all, so that a path that cannot be written costs no training.
    if not _can_write(options.output, lambda: _try_to_write(options.output)):
        return 1
    progress = _Progress()
    try:
        curves = _demo.run(options.noise, options.seeds, options.epochs, options.draws, progress.show)
    finally:
        progress.clear()
    print(f"{_demo.table(curves)}\n\n{_demo.verdict(curves)}")
    if not _can_write(options.output, lambda: _demo.plot(curves, options.output)):
        return 1
    print(f"Plot: {options.output} ({time.perf_counter() - start:.0f} s)")
    return 0


def _can_write(path: Path, write: Callable[[], None]) -> bool:
    try:
        write()
    except OSError as error:
        print(f"weightnoise: cannot write the plot {path}: {error.strerror or error}", file=sys.stderr)
        return False
    return True


def _try_to_write(path: Path) -> None:
    existed = path.exists()
    path.open("ab").close()
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
