"""Processes under torchrun, as a user would start them; one launch for all that a run asks of two, and of four."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import weightnoise as wn
from tests.torch.distributed_worker import checks_of, why_skipped
from tests.torch.distributed_worker_common import RANKS, make

ROOT = Path(__file__).parents[2]
GROUPS = ("ddp", "fsdp", "parallel", "checkpoints", "steps", "tensor")
CHECKS = [f"{group}.{name}" for group in GROUPS for name in checks_of(group)]
OF_FOUR = [f"mesh.{name}" for name in checks_of("mesh")]
# One of each group is in a quick run.
QUICK = {
    "ddp.before_and_after_with_equal_and_different_seeds",
    "fsdp.before_and_after_with_equal_and_different_seeds",
    "parallel.pipeline_draws_for_every_microbatch",
    "checkpoints.learned_strengths",
    "tensor.a_plan_of_parallel_layers",
}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")

pytestmark = [
    pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo"),
    pytest.mark.timeout(600),  # The first check waits for all that are asked for.
]


def torchrun(*arguments: str, folder: Path = ROOT, ranks: int = RANKS) -> str:
    """What the processes write on their error output, where one of them fails."""
    command = [*TORCHRUN, f"--nproc-per-node={ranks}", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    return done.stderr[-4000:] if done.returncode else ""


@functools.cache
def results(checks: tuple[str, ...], ranks: int) -> dict[str, list[str]]:
    """For each check, what went wrong in each process ("": nothing).

    One launch runs them all. The first one that fails ends its launch, and those after it are launched again.
    """
    found: dict[str, list[str]] = {}
    while left := [check for check in checks if check not in found]:
        with tempfile.TemporaryDirectory() as folder:
            said = torchrun("-m", "tests.torch.distributed_worker", folder, *left, ranks=ranks)
            files = [Path(folder, f"{rank}.json") for rank in range(ranks)]
            ran = [json.loads(file.read_text()) if file.exists() else {} for file in files]
        for check in left[: max([1, *map(len, ran)])]:
            found[check] = [each.get(check, f"It was not run.\n{said}") for each in ran]
    return found


@pytest.mark.parametrize(
    "check", [pytest.param(name, marks=[pytest.mark.quick] * (name in QUICK)) for name in CHECKS]
)
def test_in_two_processes(check: str, request: pytest.FixtureRequest) -> None:
    assert_right(check, CHECKS, RANKS, request)


@pytest.mark.parametrize("check", OF_FOUR)
def test_in_four_processes(check: str, request: pytest.FixtureRequest) -> None:
    assert_right(check, OF_FOUR, 4, request)


def assert_right(check: str, checks: list[str], ranks: int, request: pytest.FixtureRequest) -> None:
    """Nothing went wrong with a check, in a launch of all checks of its kind that the run asks for."""
    if why := why_skipped(check):
        pytest.skip(why)
    selected = {item.name for item in request.session.items}
    asked = (name for name in checks if f"{request.node.originalname}[{name}]" in selected)
    found = results(tuple(name for name in asked if not why_skipped(name)), ranks)[check]
    assert found == [""] * ranks, "\n".join(found)


@pytest.mark.quick
def test_distributed_checkpoints_have_the_names_of_the_plain_model() -> None:
    states: list[Any] = []
    for noisy in (False, True):
        model = wn.add_weight_noise(make(), 0.1) if noisy else make()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        states.append(get_state_dict(model, optimizer))
    (plain_model, plain_optimizer), (noisy_model, noisy_optimizer) = states
    assert list(noisy_model) == list(plain_model)
    assert list(noisy_optimizer["state"]) == list(plain_optimizer["state"])
    assert noisy_optimizer["param_groups"][0]["params"] == plain_optimizer["param_groups"][0]["params"]
    fresh = make()
    set_state_dict(
        fresh,
        torch.optim.Adam(fresh.parameters(), lr=0.1),
        model_state_dict=noisy_model,
        optim_state_dict=noisy_optimizer,
    )
    assert all(torch.equal(p, noisy_model[name]) for name, p in fresh.named_parameters())


def scripts() -> list[str]:
    """The scripts in the docs; the other blocks are parts of one."""
    blocks = re.findall(r"^```py\n(.*?)^```", (ROOT / "docs/distributed.md").read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if "init_process_group" in block]


@pytest.mark.parametrize("script", scripts(), ids=["ddp", "fsdp"])
def test_the_scripts_in_the_docs(script: str, tmp_path: Path) -> None:
    if "fully_shard" in script and (why := why_skipped("fsdp.any")):
        pytest.skip(why)
    # Each says what it found in a file of its rank, where the docs print it.
    to_file = "open(str(dist.get_rank()), 'w').write("
    (tmp_path / "train.py").write_text(script.replace("print(", to_file))
    said_by_torch = torchrun("train.py", folder=tmp_path)
    if "terminate called without an active exception" in said_by_torch:
        # On a busy machine a thread of gloo's may outlive the group as the process ends, after all was printed.
        said_by_torch = torchrun("train.py", folder=tmp_path)
    assert said_by_torch == ""
    said = [(tmp_path / str(rank)).read_text().partition(": ") for rank in range(2)]
    assert [rank for rank, _, _ in said] == ["rank 0", "rank 1"]
    assert said[0][2] == said[1][2]
