"""One process of a training with DeepSpeed on CPUs: its weights are those of a plain loop over the whole batch."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from typing import Any

os.environ.update({"DS_ACCELERATOR": "cpu", "LOCAL_RANK": os.environ["RANK"]})

import deepspeed
import deepspeed.ops
import torch
from torch import nn

import weightnoise as wn

# An operator in C++ for processes of one machine, which would be compiled first.
deepspeed.ops.__compatible_ops__.update(dict.fromkeys(deepspeed.ops.__compatible_ops__, False))
LAWS: dict[str, Any] = {"Gaussian": wn.Gaussian(0.3), "LearnedGaussian": wn.LearnedGaussian(0.3)}


def noisy(size: int, law: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return wn.add_weight_noise(nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 1)), law)


def main(stage: int, law: Any, size: int) -> None:
    """Three steps, each with one draw for all processes."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    x = torch.linspace(-1, 1, 8 * size).reshape(8, size)
    plain, inner = noisy(size, law), noisy(size, law)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    # DeepSpeed clips gradients to a norm of 1 unless it is told not to.
    config = {
        "train_micro_batch_size_per_gpu": 8 // world,
        "gradient_clipping": 0.0,
        # Of small parameters stage 3 keeps the whole on each process, unless it is told not to.
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(
        model=inner, optimizer=torch.optim.SGD(inner.parameters(), lr=0.1, momentum=0.9), config=config
    )
    for step in range(3):
        torch.manual_seed(step)
        engine.backward(engine(x.chunk(world)[rank]).square().mean())
        engine.step()
        torch.manual_seed(step)
        optimizer.zero_grad()
        plain(x).square().mean().backward()
        optimizer.step()
    assert (inner[0].weight.numel() == 0) == (stage == 3)
    with deepspeed.zero.GatheredParameters(list(inner.parameters())) if stage == 3 else nullcontext():
        for found, expected in zip(inner.parameters(), plain.parameters(), strict=True):
            # Sums of float32 in another order, over three steps.
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    with wn.no_noise(engine), wn.no_noise(plain):
        torch.testing.assert_close(engine(x), plain(x), rtol=1e-4, atol=1e-5)
    assert not torch.equal(engine(x), engine(x))
    with wn.hold_noise(inner, seed=3), wn.hold_noise(plain, seed=3):
        torch.testing.assert_close(engine(x), plain(x), rtol=1e-4, atol=1e-5)
    sys.stdout.write("same\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[4]}", rank=rank, world_size=world)
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, dist_init_required=False)
    main(int(sys.argv[1]), LAWS[sys.argv[2]], int(sys.argv[3]))
    torch.distributed.barrier()
    os._exit(0)  # Leaving in order takes DeepSpeed a minute now and then.
