"""Two processes under torchrun, as a user would start them; one launch for each group of checks."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.torch.distributed_worker import checks_of, why_skipped

ROOT = Path(__file__).parents[2]
GROUPS = ("ddp", "fsdp", "parallel", "checkpoints", "steps")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


def torchrun(*arguments: str, folder: Path = ROOT) -> str:
    """What two processes write on their error output, where one of them fails."""
    done = subprocess.run([*TORCHRUN, *arguments], cwd=folder, capture_output=True, text=True, timeout=150)
    return done.stderr[-4000:] if done.returncode else ""


@functools.cache
def results(group: str) -> tuple[list[dict[str, str]], str]:
    """For each process, what went wrong in each check that was run ("": nothing); and what torchrun said."""
    with tempfile.TemporaryDirectory() as folder:
        said = torchrun("-m", "tests.torch.distributed_worker", group, folder)
        return [json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())], said


@pytest.mark.parametrize(("group", "check"), [(group, name) for group in GROUPS for name in checks_of(group)])
def test_in_two_processes(group: str, check: str) -> None:
    if why := why_skipped(group, check):
        pytest.skip(why)
    found, said = results(group)
    wrong = [ran.get(check, "It was not run.") for ran in found]
    assert wrong == ["", ""], "\n".join([*wrong, said])


def scripts() -> list[str]:
    """The scripts in the docs; the other blocks are parts of one."""
    blocks = re.findall(r"^```py\n(.*?)^```", (ROOT / "docs/distributed.md").read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if "init_process_group" in block]


@pytest.mark.parametrize("script", scripts(), ids=["ddp", "fsdp"])
def test_the_scripts_in_the_docs(script: str, tmp_path: Path) -> None:
    if "fully_shard" in script and (why := why_skipped("fsdp", "")):
        pytest.skip(why)
    # Each says what it found in a file of its rank, where the docs print it.
    to_file = "open(str(dist.get_rank()), 'w').write("
    (tmp_path / "train.py").write_text(script.replace("print(", to_file))
    assert torchrun("train.py", folder=tmp_path) == ""
    said = [(tmp_path / str(rank)).read_text().partition(": ") for rank in range(2)]
    assert [rank for rank, _, _ in said] == ["rank 0", "rank 1"]
    assert said[0][2] == said[1][2]
