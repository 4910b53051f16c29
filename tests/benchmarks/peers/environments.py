"""A virtual environment for each peer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.processes import ROOT, run

REQUIREMENTS: dict[str, str] = {
    "aihwkit": "aihwkit==1.1.0",
    "aihwkit-lightning": "aihwkit-lightning==2.1.0",
    "analogvnn": "analogvnn==1.0.8",
    "bayesian-torch": "bayesian-torch==0.5.0",
    "blitz-bayesian-pytorch": "blitz-bayesian-pytorch==0.2.8",
    "MRFI": "MRFI==2.1.0",
    "noise-injection": "noise-injection==0.3.0",
    "torch-uncertainty": "torch-uncertainty[cpu]==0.13.0",
    "torchbayesian": "torchbayesian==0.2.1",
    "torchbnn": "torchbnn==1.2",
    "torchrl": "torchrl==0.14.1",
}

_SECONDS = 900  # To install one.


def python_of(folder: Path, name: str, requirement: str, progress: Callable[[str], None]) -> Path:
    """The interpreter of the peer's environment, which is made where there is none yet.

    Args:
        folder: of all environments; this one's is called after the peer.
        name: of the peer.
        requirement: what is installed, beside the version of torch in constraints.txt.
        progress: told what takes long.

    Raises:
        ProcessError: if it does not install.
    """
    place = folder / name
    python, done = place / "bin" / "python", place / "installed"
    if not done.exists() or done.read_text() != requirement:
        progress(f"installing {requirement}")
        run([sys.executable, "-m", "venv", "--clear", str(place)], _SECONDS)
        versions = ["-c", str(ROOT / "constraints.txt"), "torch", "numpy", requirement]
        run([str(python), "-m", "pip", "install", "--quiet", *versions], _SECONDS)
        done.write_text(requirement)
    return python
