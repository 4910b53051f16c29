"""What is checked on a GPU, each in a function that raises where something is wrong."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.helpers import captured
from weightnoise._random import philox

ROOT = Path(__file__).parents[2]
MARKED = ("tests/torch/test_training.py", "-k", "cuda")
INTERPRETED = ("tests/random/test_triton.py",)
PROCESSES = 2


class NotHereError(Exception):
    """What is missing here, in words."""


def need_gpu(count: int = 1) -> None:
    """Raise `NotHereError` unless there are as many GPUs."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < count:
        raise NotHereError(f"needs {count} GPU{'s' if count > 1 else ''}, and there are {found}")


def need_triton() -> Any:
    """The module of the kernel; `NotHereError` where Triton or the library in C is missing."""
    if importlib.util.find_spec("triton") is None:
        raise NotHereError("Triton is not installed")
    if philox._LIBRARY is None:
        raise NotHereError("built without a C compiler, so that there are no bits to compare with")
    from weightnoise._random import triton as kernel

    return kernel


def run_pytest(*arguments: str) -> str:
    """The last line of pytest.

    Raises:
        NotHereError: where all tests were skipped.
        AssertionError: where one failed.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.strip()] or [done.stderr.strip()[-200:]]
    assert done.returncode == 0, "\n".join(lines[-30:])
    if " passed" not in lines[-1]:
        reasons = [line.rpartition(": ")[2] for line in lines if line.startswith("SKIPPED")]
        raise NotHereError("; ".join(dict.fromkeys(reasons)) or lines[-1])
    return lines[-1]


def marked_tests() -> str:
    """The tests of CUDA graphs and streams that the suite skips without a GPU."""
    need_gpu()
    return run_pytest(*MARKED)


def triton_interpreted() -> str:
    """The kernel in Triton's interpreter on the CPU, and compiled for two GPUs: no GPU is needed."""
    need_triton()
    return run_pytest(*INTERPRETED)


def triton_bits() -> str:
    """The kernel on a GPU has the bits of the generator in C, with scales, and keys at the ends."""
    need_gpu()
    kernel = need_triton()
    compared = 0
    for shape in ((64, 64), (1, 1), (33, 77), (2049,), (3, 4, 5, 7), (4096, 1025)):
        for key in (0, 1, 2**32, 2**63 - 2, 123456789):
            by_row, by_place = torch.rand(shape[0], *[1] * (len(shape) - 1)), torch.rand(1, *shape[1:])
            for which, scale in (("no scale", None), ("a row each", by_row), ("a place each", by_place)):
                weight = torch.randn(shape)
                out = torch.empty_like(weight, device="cuda")
                scales, width = philox._scales(scale, weight)
                on_gpu = None if scales is None else scales.cuda()
                kernel.add_normal(out, weight.cuda(), torch.tensor(key, device="cuda"), 0.37, on_gpu, width)
                expected = philox.add_normal(weight, key, 0.37, scale)
                assert torch.equal(out.cpu(), expected), f"other bits at {shape}, key {key}, {which}"
                compared += weight.numel()
    return f"{compared:,} numbers equal"


def run_python(*arguments: str, engine: str = "") -> str:
    """What a process writes; `AssertionError` with the end of what it says where it fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "WEIGHTNOISE_ENGINE": engine},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def of_engine(engine: str, check: str) -> Callable[[], str]:
    """A check of this file in a process that has the engine from the start."""

    def run() -> str:
        need_gpu()
        if engine == "triton":
            need_triton()
        return run_python("-c", f"from tests.gpu import checks; print(checks.{check}())", engine=engine)

    return run


def _noisy() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)), 0.1).cuda()
    return model, torch.randn(16, 64, device="cuda")


def graphs() -> str:
    """A replayed CUDA graph draws anew each time."""
    model, x = _noisy()
    graph, output = captured(model, x)
    seen = set()
    for _ in range(20):
        graph.replay()
        seen.add(output.sum().item())
    assert len(seen) == 20, f"{len(seen)} different outputs in 20 replays"
    return f"20 different outputs in 20 replays; {wn.engine()}"


def streams() -> str:
    """Two streams at once read the same held draw, and different fresh ones."""
    model, x = _noisy()
    held, fresh = [], []
    with torch.no_grad(), wn.hold_noise(model, seed=0):
        expected = model(x)
        torch.cuda.synchronize()
        for _ in range(2):
            with _stream():
                held.append(model(x))
        torch.cuda.synchronize()
    with torch.no_grad():
        for _ in range(2):
            with _stream():
                fresh.append(model(x))
        torch.cuda.synchronize()
    assert all(torch.equal(one, expected) for one in held), "a held draw differs between streams"
    assert not torch.equal(*fresh), "two fresh draws are equal"
    return "held draws equal, fresh ones different"


def _stream() -> AbstractContextManager[Any]:
    return torch.cuda.stream(torch.cuda.Stream())


def recomputed() -> str:
    """Gradients with ``memory="recompute"`` are those of the draw of the forward."""
    found = []
    for memory in ("keep", "recompute"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)).cuda()
        wn.add_weight_noise(model, wn.Gaussian(0.1, relative_to="absmax", per=0), memory=memory)
        x = torch.randn(16, 64, device="cuda")
        torch.manual_seed(1)
        model(x).square().mean().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found[0], found[1])
    return "equal gradients"


def sharded(way: str) -> Callable[[], str]:
    """FSDP over the GPUs, or over two processes of the CPU where there is none: the worker in ``fsdp.py``."""

    def run() -> str:
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        processes = min(gpus, PROCESSES) or PROCESSES
        with tempfile.TemporaryDirectory() as folder:
            said = Path(folder, "said")
            launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            run_python("-m", *launch, "-m", "tests.gpu.fsdp", way, "cuda" if gpus else "cpu", str(said))
            return said.read_text()

    return run


CHECKS: dict[str, Callable[[], str]] = {
    "marked tests": marked_tests,
    "Triton in its interpreter": triton_interpreted,
    "Triton's bits against C": triton_bits,
    "CUDA graphs, torch's generator": of_engine("", "graphs"),
    "CUDA graphs, Triton": of_engine("triton", "graphs"),
    "streams, torch's generator": of_engine("", "streams"),
    "streams, Triton": of_engine("triton", "streams"),
    "recomputation, torch's generator": of_engine("", "recomputed"),
    "recomputation, Triton": of_engine("triton", "recomputed"),
    "FSDP1": sharded("fsdp1"),
    "FSDP2": sharded("fsdp2"),
}
