"""The wheel: one for every Python of a platform, with the engine in it, and an install that needs no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PARTS = ["LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py", "weightnoise"]
REPORT = "import weightnoise; print(weightnoise.__file__, weightnoise.engine(), sep='|')"
COMPILER = shutil.which("gcc" if os.name == "nt" else "cc")


def run(*arguments: str, at: Path, **environment: str) -> str:
    """The output of Python with these arguments, in a folder."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=at,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def built(place: Path, **environment: str) -> Path:
    """A wheel of this checkout, without what has been built in it before."""
    source = place / "source"
    source.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(
                ROOT / part, source / part, ignore=shutil.ignore_patterns("*.so", "*.dll", "__pycache__")
            )
        else:
            shutil.copy(ROOT / part, source)
    run("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "..", ".", at=source, **environment)
    (wheel,) = place.glob("*.whl")
    return wheel


def engine_without_compiler(wheel: Path, place: Path) -> str:
    """What the package says, installed from a wheel into a folder of its own, where no compiler is found."""
    nothing = (
        str(place / "nothing") if os.name == "posix" else os.environ["PATH"]
    )  # Windows finds libraries by it.
    run(
        "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", "installed", str(wheel),
        at=place, PATH=nothing, CC="false",
    )  # fmt: skip
    installed = place / "installed"
    output = run("-c", REPORT, at=place, PYTHONPATH=str(installed), PATH=nothing, CC="false")
    file, engine = output.strip().split("|")
    assert Path(file).is_relative_to(installed)
    return engine


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_a_wheel_brings_the_engine_to_every_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEIGHTNOISE_ENGINE", raising=False)
    wheel = built(tmp_path)
    python, abi, platform = wheel.stem.split("-")[-3:]
    assert (python, abi) == ("py3", "none")
    assert platform != "any"
    names = zipfile.ZipFile(wheel).namelist()
    (library,) = [name for name in names if "_philox" in name]
    assert Path(library).name in ("_philox.so", "_philox.dll")
    assert "weightnoise/py.typed" in names
    assert not [name for name in names if name.endswith((".c", ".h")) or name.startswith("tests")]
    assert engine_without_compiler(wheel, tmp_path).startswith("philox (")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the compiler is looked for by its name there")
def test_without_a_compiler_the_install_succeeds_and_torch_draws(tmp_path: Path) -> None:
    wheel = built(tmp_path, CC="false")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "_philox" in name]
    assert engine_without_compiler(wheel, tmp_path) == "torch"
