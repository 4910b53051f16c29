"""The C code under the sanitizers, without a warning, and with the same bits, by each compiler that is here."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import weightnoise

ROOT = Path(__file__).parents[2]
SOURCES = Path(weightnoise.__file__).parent / "_random" / "csrc"
SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
STRICT = ["-Wall", "-Wextra", "-Werror"]


def own_flags() -> list[str]:
    """Those that the package is built with; without them the numbers are others."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OPTIONS":
            flags: list[str] = ast.literal_eval(node.value)
            return flags
    raise LookupError("setup.py has no OPTIONS")


def build(compiler: str, flags: list[str], target: Path) -> subprocess.CompletedProcess[str]:
    kernels = sorted(map(str, SOURCES.glob("*.c")))
    driver = [f"-I{SOURCES}", str(Path(__file__).with_name("kernels.c")), *kernels]
    command = [compiler, *own_flags(), *flags, *driver, "-lpthread", "-lm", "-o", str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(params=["gcc", "clang"])
def compiler(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"there is no {request.param} here")
    name: str = request.param
    return name


def test_nothing_but_what_it_was_given(compiler: str, tmp_path: Path) -> None:
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
    tried = [compiler, *SANITIZERS, str(tmp_path / "empty.c"), "-o", str(tmp_path / "empty")]
    if subprocess.run(tried, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{compiler} is here without the libraries of its sanitizers")
    built = build(compiler, SANITIZERS, tmp_path / "kernels")
    assert built.returncode == 0, built.stderr
    # The leak checker needs to trace its process, which containers forbid.
    ran = subprocess.run(
        [tmp_path / "kernels"], capture_output=True, text=True, check=False, env={"ASAN_OPTIONS": "detect_leaks=0"}
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert "checks up to level" in ran.stdout


def test_every_function_of_the_library_is_called() -> None:
    declared = set(re.findall(r"\b(weightnoise_\w+)\(", (SOURCES / "engine.h").read_text()))
    defined = {
        name
        for source in SOURCES.glob("*.c")
        for name in re.findall(r"^[a-z]\w* \*?(weightnoise_\w+)\(", source.read_text(), re.MULTILINE)
    }
    called = set(re.findall(r"\b(weightnoise_\w+)\(", Path(__file__).with_name("kernels.c").read_text()))
    assert len(declared) > 10
    assert declared == defined == called


def test_no_warning(compiler: str, tmp_path: Path) -> None:
    built = build(compiler, STRICT, tmp_path / "kernels")
    assert built.returncode == 0, built.stderr


ARM = "aarch64-linux-gnu-gcc"  # In Debian's gcc-aarch64-linux-gnu, and qemu-aarch64 in its qemu-user.
EMULATOR = {ARM: "qemu-aarch64"}


@pytest.mark.parametrize("level", ["-O0", "-O3"])
@pytest.mark.parametrize("compiler", ["gcc", "clang", ARM])
def test_the_same_bits_by_any_compiler_and_on_another_machine(compiler: str, level: str, tmp_path: Path) -> None:
    emulator = EMULATOR.get(compiler)
    for tool in (compiler, emulator):
        if tool is not None and shutil.which(tool) is None:
            pytest.skip(f"there is no {tool} here")
    built = build(compiler, [level, *(["-static"] if emulator else [])], tmp_path / "kernels")
    assert built.returncode == 0, built.stderr
    program = [*([emulator] if emulator else []), str(tmp_path / "kernels"), "bits"]
    ran = subprocess.run(program, capture_output=True, text=True, check=True)
    # All kinds of numbers, four keys, places up to 2^34. Another sum is another definition.
    # So for the laws and the statistics.
    assert ran.stdout == "bits 865cdfd0873f9207\nlaws 3bc1c5083d0a4bca\n"
