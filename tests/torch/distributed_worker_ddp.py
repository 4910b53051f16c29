"""DistributedDataParallel: what every rank draws, and that gradients are averaged all the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.torch.distributed_worker_common import (
    GAUSSIAN,
    RANKS,
    assert_all_close,
    assert_ranks_agree,
    assert_ranks_differ,
    batch,
    expected_gradients,
    gradients,
    loss_of,
    make,
    own,
    weights,
)

EQUAL, DIFFERENT = [5, 5], [5, 6]


def wrap(spec: Any, before: bool = True, **options: Any) -> DistributedDataParallel:
    model = make()
    if before:
        wn.add_weight_noise(model, spec)
    wrapped = DistributedDataParallel(model, **options)
    return wrapped if before else wn.add_weight_noise(wrapped, spec)


def step(model: nn.Module, seeds: list[int]) -> None:
    torch.manual_seed(seeds[dist.get_rank()])
    loss_of(model, own()).backward()


def check_before_and_after_with_equal_and_different_seeds() -> None:
    for before in (True, False):
        for seeds in (EQUAL, DIFFERENT):
            model = wrap(GAUSSIAN, before)
            step(model, seeds)
            assert_ranks_agree(gradients(model))
            assert_all_close(gradients(model), expected_gradients(GAUSSIAN, seeds))


def check_the_seed_of_a_rank_decides_its_draw() -> None:
    model = wrap(GAUSSIAN)
    x = batch(0)
    torch.manual_seed(EQUAL[dist.get_rank()])
    assert_ranks_agree([model(x)])
    torch.manual_seed(DIFFERENT[dist.get_rank()])
    assert_ranks_differ(model(x))


def check_a_seeded_hold_is_shared_by_all_ranks() -> None:
    model = wrap(GAUSSIAN)
    x = batch(0)
    before = torch.get_rng_state()
    with wn.hold_noise(model, seed=3):
        first = model(x).detach()
    with wn.hold_noise(model, seed=4):
        second = model(x).detach()
    assert_ranks_agree([first, second])
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)  # Dropout and data keep a seed of their own on each rank.
    torch.manual_seed(DIFFERENT[dist.get_rank()])
    with wn.hold_noise(model):
        assert_ranks_differ(model(x))


def check_no_sync_accumulates() -> None:
    model = wrap(GAUSSIAN)
    with model.no_sync():
        step(model, DIFFERENT)
    assert_ranks_differ(gradients(model)[0])
    step(model, [7, 8])
    parts = expected_gradients(GAUSSIAN, DIFFERENT), expected_gradients(GAUSSIAN, [7, 8])
    assert_all_close(gradients(model), [a + b for a, b in zip(*parts, strict=True)])


def check_static_graph() -> None:
    for spec in (GAUSSIAN, wn.LearnedGaussian(0.3)):
        model = wrap(spec, static_graph=True)
        for seeds in (EQUAL, DIFFERENT, [7, 8]):
            model.zero_grad()
            step(model, seeds)
            assert_all_close(gradients(model), expected_gradients(spec, seeds))


def check_learned_strengths_are_averaged() -> None:
    spec = wn.LearnedGaussian(0.3)
    model = wrap(spec)
    step(model, DIFFERENT)
    assert len(wn.learned_strengths(model)) == 3
    assert_ranks_agree(gradients(model))
    assert_all_close(gradients(model), expected_gradients(spec, DIFFERENT))


def check_learned_strengths_come_before_the_wrapper() -> None:
    model = DistributedDataParallel(make())
    with pytest.raises(wn.UnsupportedParameterError, match="Add the noise before the model is wrapped"):
        wn.add_weight_noise(model, [wn.Clip(), wn.LearnedGaussian()])
    assert not wn.has_weight_noise(model)
    wn.add_weight_noise(model, 0.1)


def check_learned_strengths_that_are_off() -> None:
    # torch waits for their gradients, as for those of any parameter that takes no part, and says so in the
    # next forward; find_unused_parameters is its own remedy.
    model = wrap(wn.LearnedGaussian(0.3))
    with wn.no_noise(model):
        loss_of(model, own()).backward()
    with pytest.raises(RuntimeError, match="find_unused_parameters=True"):
        model(own())
    model = wrap(wn.LearnedGaussian(0.3), find_unused_parameters=True)
    with wn.no_noise(model):
        loss_of(model, own()).backward()
    plain = DistributedDataParallel(make())
    loss_of(plain, own()).backward()
    own_weights = [p for name, p in model.named_parameters() if name not in wn.learned_strengths(model)]
    assert_all_close([p.grad for p in own_weights if p.grad is not None], gradients(plain))
    step(model, EQUAL)


def check_weights_stay_equal_over_training_and_removal() -> None:
    model = wrap(GAUSSIAN, before=False, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        loss_of(model, own()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_ranks_agree(weights(model))
    wn.remove_weight_noise(model)
    single = [copy.deepcopy(model.module) for _ in range(RANKS)]
    loss_of(model, own()).backward()
    for rank, part in enumerate(single):
        loss_of(part, batch(rank)).backward()
    pairs = zip(gradients(single[0]), gradients(single[1]), strict=True)
    assert_all_close(gradients(model), [(a + b) / 2 for a, b in pairs])


def check_off_is_the_plain_model() -> None:
    model = wrap(GAUSSIAN)
    with wn.no_noise(model):
        assert torch.equal(model(own()), make()(own()))
        loss_of(model, own()).backward()
    assert_all_close(gradients(model), expected_gradients(None, EQUAL))


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        computed: Tensor = checkpoint(self.inner, x, use_reentrant=False)
        return computed


def check_activation_checkpointing() -> None:
    model = DistributedDataParallel(Checkpointed(wn.add_weight_noise(make(), GAUSSIAN)))
    step(model, DIFFERENT)
    assert_all_close(gradients(model), expected_gradients(GAUSSIAN, DIFFERENT))


def check_names_do_not_know_of_the_wrapper() -> None:
    model = wrap(GAUSSIAN, before=False)
    assert list(model.module.state_dict()) == list(make().state_dict())
    assert list(wn.noisy_parameters(model)) == [f"module.{place}.weight" for place in (0, 2, 4)]
    assert list(wn.noisy_parameters(model.module)) == [f"{place}.weight" for place in (0, 2, 4)]


def check_ranges_are_set_by_the_batches_of_all_ranks() -> None:
    for law in (wn.Converter(8, range="max", learned=True, batches=2), wn.Converter(8, k=2.0, batches=2)):
        model = DistributedDataParallel(wn.add_activation_noise(make(), {"0": law}, at="input"))
        for moved in (0.0, 3.0, 90.0):  # The third sets nothing any more.
            model(own() + moved).square().mean().backward()
        each = [[law.measured(batch(rank) + moved) for rank in range(RANKS)] for moved in (0.0, 3.0)]
        stacked = torch.tensor(each)
        expected = stacked.max() if law.range == "max" else stacked.mean()
        found = model.module.state_dict()["0.activation_noise.input.range"]
        assert_all_close([found], [expected.reshape(1)])
        assert_ranks_agree([found, *gradients(model)])


def check_a_group_has_one_range_of_all_layers_and_ranks() -> None:
    for learned in (False, True):
        for method in ("max", "std"):
            law = wn.Converter(8, range=method, learned=learned, batches=1, group="dac")  # type: ignore[arg-type]
            model = DistributedDataParallel(wn.add_activation_noise(make(), law, at="input"))
            for _ in range(2):  # The second sets nothing any more.
                model(own()).square().mean().backward()
            asked: list[Tensor] = []
            xs = [batch(rank) for rank in range(RANKS)]
            for layer in make():
                if isinstance(layer, nn.Linear):
                    asked += [law.measured(x).flatten() for x in xs]
                    each = torch.stack(asked)
                    top = each.max() if method == "max" else each.mean()
                    xs = [wn.Converter(8, range=top.item()).apply(x, None, 1.0) for x in xs]
                xs = [layer(x) for x in xs]
            state = model.module.state_dict()
            found = state["0.activation_noise.input.range"]
            assert_all_close([found], [top.detach().reshape(1)])
            assert state["0.activation_noise.input.batches"].item() == 3
            assert sum("activation_noise" in name for name in state) == 2
            assert_ranks_agree([found, *gradients(model)])
            anew = wn.calibrate_ranges(model, [own()])
            assert_ranks_agree(list(anew.values()))


def check_calibration_is_that_of_all_ranks() -> None:
    for method in ("max", "quantile"):
        law = wn.Converter(8, range=method, learned=True, quantile=0.7)  # type: ignore[arg-type]
        model = wn.add_activation_noise(make(), {"0": law}, at="input")
        with pytest.raises(wn.UnsupportedActivationError, match="from the batches of this process alone"):
            model(own())
        # Ranks with another number of batches: each batch counts the same.
        count = dist.get_rank() + 1
        found = wn.calibrate_ranges(model, [own()] * count)["0.activation_noise.input.range"]
        each = torch.tensor([law.measured(batch(0)), law.measured(batch(1)), law.measured(batch(1))])
        assert_all_close([found], [(each.max() if method == "max" else each.mean()).reshape(1)])
        assert_ranks_agree([found])
        model(own())
        alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
        assert_ranks_differ(*wn.calibrate_ranges(model, [own()], group=alone).values())
        wrapped = DistributedDataParallel(model)
        with pytest.raises(wn.UnsupportedActivationError, match="Add it before the model is wrapped"):
            wn.add_activation_noise(wrapped, law)
