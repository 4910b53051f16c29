"""Stages of a pipeline are models of their own."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, pipeline
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

import weightnoise as wn
from tests.cases import torch_before
from tests.torch.distributed_worker_common import GAUSSIAN, RANKS, assert_all_close, make

X = torch.linspace(-1, 1, 16).reshape(4, 4)


def halves(model: nn.Sequential) -> list[nn.Sequential]:
    """The stages, in which the layers keep the names that they have in the whole model."""
    stages = [nn.Sequential(), nn.Sequential()]
    for place, layer in enumerate(model):
        stages[place > 2].add_module(str(place), layer)
    return stages


def run_pipeline(schedule: type[PipelineScheduleSingle], stage: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The losses, on the last rank, and the gradients of a batch in two microbatches."""
    rank = dist.get_rank()
    takes = torch.empty(2, 4 if rank == 0 else 6)  # torch 2.5 cannot do without.
    runner = schedule(
        PipelineStage(stage, rank, RANKS, torch.device("cpu"), input_args=takes),
        n_microbatches=2,
        loss_fn=lambda output, target: (output - target).square().mean(),
    )
    losses: list[Tensor] = []
    target = torch.zeros(4, 3)
    runner.step(X) if rank == 0 else runner.step(target=target, losses=losses)
    return losses, [parameter.grad.clone() for parameter in stage.parameters() if parameter.grad is not None]


def check_pipeline_stages() -> None:
    # The second one of torch 2.5 has both processes wait for each other.
    for schedule in (ScheduleGPipe,) if torch_before("2.6") else (ScheduleGPipe, Schedule1F1B):
        stage = halves(make())[dist.get_rank()]
        wn.add_weight_noise(stage, GAUSSIAN)
        with wn.hold_noise(stage, seed=3):
            losses, found = run_pipeline(schedule, stage)
        whole = wn.add_weight_noise(make(), GAUSSIAN)
        with wn.hold_noise(whole, seed=3):
            expected = [whole(part).square().mean() for part in X.chunk(2)]
            losses_of_parts = torch.stack(expected)
            # torch 2.5 and 2.6 add the gradients of the microbatches.
            (losses_of_parts.sum() if torch_before("2.7") else losses_of_parts.mean()).backward()
        parts = halves(whole)[dist.get_rank()]
        assert_all_close(found, [p.grad for p in parts.parameters() if p.grad is not None])
        if dist.get_rank() == 1:
            assert_all_close(losses, expected)


def check_pipeline_draws_for_every_microbatch() -> None:
    stage = halves(make())[dist.get_rank()]
    wn.add_weight_noise(stage, GAUSSIAN)
    layer = stage[0] if dist.get_rank() == 0 else stage[1]  # The one Linear in the second half is its second.
    seen: list[tuple[Tensor, Tensor]] = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].detach(), output.detach())))
    torch.manual_seed(5)
    run_pipeline(ScheduleGPipe, stage)
    torch.manual_seed(5)
    assert len(seen) >= 2
    effective = [torch.linalg.lstsq(torch.cat([i, torch.ones(len(i), 1)], 1), o).solution for i, o in seen[-2:]]
    assert not torch.allclose(*effective)


def check_tracing_a_pipeline_with_noise_on_is_refused() -> None:
    model = wn.add_weight_noise(make(), GAUSSIAN)
    with pytest.raises(RuntimeError) as caught:
        pipeline(model, mb_args=(X[:2],))
    assert isinstance(caught.value.__cause__, wn.ExportError)
