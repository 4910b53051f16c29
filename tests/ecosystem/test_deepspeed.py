"""DeepSpeed's ZeRO on two CPU processes, beside a loop without it.

DeepSpeed is built from source and is in no extra: ``pip install -c constraints.txt deepspeed``. Tried with 0.19.8.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed, which is in no extra")
@pytest.mark.parametrize(
    ("stage", "law", "size"),
    [
        (1, "LearnedGaussian", 8),
        (2, "Gaussian", 64),
        (2, "LearnedGaussian", 64),
        (3, "Gaussian", 8),
        (3, "LearnedGaussian", 64),
    ],
)
def test_training_is_that_of_a_loop_without_it(stage: int, law: str, size: int, tmp_path: Path) -> None:
    worker = [sys.executable, str(Path(__file__).parent / "deepspeed_worker.py")]
    processes = [
        subprocess.Popen(
            [*worker, str(stage), law, str(size), str(tmp_path / "store")],
            env={**os.environ, "PYTHONPATH": str(ROOT), "RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [
        (process.returncode, "same" in text.splitlines()) for process, text in zip(processes, said, strict=True)
    ] == [(0, True)] * 2, "\n".join(said)
