"""Started by torchrun: runs checks in each process and writes down what failed.

torchrun --standalone --nproc-per-node=2 -m tests.torch.distributed_worker OUTPUT ddp.static_graph fsdp.clipping
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.cases import torch_before
from tests.torch.distributed_worker_common import Check

NO_SHARDS = "torch before 2.7: its fully_shard runs on GPUs alone"


def checks_of(group: str) -> dict[str, Check]:
    """The functions of the group's file that are checks, by name."""
    module = importlib.import_module(f"tests.torch.distributed_worker_{group}")
    found = inspect.getmembers(module, inspect.isfunction)
    return {name.removeprefix("check_"): check for name, check in found if name.startswith("check_")}


def why_skipped(check: str) -> str:
    """What keeps this torch from running a check; "" where nothing does."""
    shards = check.startswith(("fsdp.", "checkpoints.", "mesh.fully_shard"))
    return NO_SHARDS if shards and torch_before("2.7") else ""


def run(check: Check) -> str:
    """What went wrong; "" where nothing did."""
    torch.manual_seed(100 + dist.get_rank())  # A check that needs equal seeds sets them.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.filterwarnings("ignore", "DTensor random operators may not have complete support")  # 2.5
            # Of torch's own layers, where fully_shard is over tensor parallelism.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            check()
    except BaseException:  # torch's CheckpointException is no Exception.
        return traceback.format_exc()
    return ""


def main(output: str, *checks: str) -> None:
    """The processes talk in step, so that the first check that fails is the last one that runs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    results = {}
    file = Path(output, f"{dist.get_rank()}.json")
    for check in checks:
        group, _, name = check.partition(".")
        results[check] = run(checks_of(group)[name])
        file.write_text(json.dumps(results))
        if results[check]:
            sys.exit(1)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
