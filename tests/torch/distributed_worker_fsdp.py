"""fully_shard (FSDP2): the noisy weight is made from the whole one, inside the forward of its module."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrizations

import weightnoise as wn
from tests.torch.distributed_worker_common import (
    GAUSSIAN,
    RANKS,
    MixedPrecisionPolicy,
    assert_all_close,
    assert_ranks_agree,
    assert_ranks_differ,
    batch,
    expected_gradients,
    fully_shard,
    gradients,
    loss_of,
    make,
    own,
    weights,
    whole,
)

EQUAL, DIFFERENT = [5, 5], [5, 6]
LAWS: tuple[Any, ...] = (
    GAUSSIAN,
    [wn.Clip(2.0), wn.Quantize(6), wn.Gaussian(0.1)],
    wn.DropConnect(0.2),
    wn.StuckAt(zero=0.2),
    wn.ProgrammingNoise(),
)
LEARNED: tuple[Any, ...] = (
    wn.LearnedGaussian(0.3),
    wn.LearnedGaussian(0.3, factorised=True),
    wn.ParametricNoise(),
)


@functools.cache
def data_parallel() -> DeviceMesh:
    return init_device_mesh("cpu", (RANKS,))


def shard(model: nn.Sequential, by_layer: bool = True, **options: Any) -> nn.Sequential:
    mesh = data_parallel()
    if by_layer:
        for place in (0, 2, 4):
            fully_shard(model[place], mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def build(spec: Any, before: bool = True, by_layer: bool = True, **options: Any) -> nn.Sequential:
    model = make()
    if before:
        wn.add_weight_noise(model, spec)
    shard(model, by_layer, **options)
    return model if before else wn.add_weight_noise(model, spec)


def step(model: nn.Module, seeds: list[int]) -> None:
    torch.manual_seed(seeds[dist.get_rank()])
    loss_of(model, own()).backward()


def layouts() -> Iterator[tuple[bool, bool]]:
    yield from ((before, by_layer) for before in (True, False) for by_layer in (True, False))


def check_before_and_after_with_equal_and_different_seeds() -> None:
    for before, by_layer in layouts():
        for seeds in (EQUAL, DIFFERENT):
            model = build(GAUSSIAN, before, by_layer)
            step(model, seeds)
            assert_all_close(gradients(model), expected_gradients(GAUSSIAN, seeds))


def check_laws() -> None:
    for law in LAWS:
        for before in (True, False):
            model = build(law, before)
            step(model, DIFFERENT)
            assert_all_close(gradients(model), expected_gradients(law, DIFFERENT))


def check_learned_strengths_are_sharded_and_averaged() -> None:
    for law in LEARNED:
        for by_layer in (True, False):
            model = build(law, by_layer=by_layer)
            assert all(isinstance(strength, DTensor) for strength in wn.learned_strengths(model).values())
            step(model, DIFFERENT)
            assert_all_close(gradients(model), expected_gradients(law, DIFFERENT))


def check_learned_strengths_come_before_the_sharding() -> None:
    for law in LEARNED:
        model = shard(make())
        with pytest.raises(wn.UnsupportedParameterError, match="Add the noise before the model is wrapped"):
            wn.add_weight_noise(model, law)
        assert not wn.has_weight_noise(model)


def check_estimators() -> None:
    for estimator in ("flipout", "local"):
        for before in (True, False):
            model = make() if before else shard(make())
            wn.add_weight_noise(model, wn.Gaussian(0.3), estimator=estimator)
            model = shard(model) if before else model
            single = wn.add_weight_noise(make(), wn.Gaussian(0.3), estimator=estimator)
            for each in (model, single):
                torch.manual_seed(5)
                loss_of(each, batch(0)).backward()
            assert_all_close(gradients(model), gradients(single))


def check_reshard_after_forward() -> None:
    for reshard in (True, False):
        for before in (True, False):
            model = build(GAUSSIAN, before, reshard_after_forward=reshard)
            for seeds in (DIFFERENT, [7, 8]):
                model.zero_grad()
                step(model, seeds)
                assert_all_close(gradients(model), expected_gradients(GAUSSIAN, seeds))


def check_recompute() -> None:
    for law in LAWS:
        for before in (True, False):
            for reshard in (True, False):
                model = make()
                if before:
                    wn.add_weight_noise(model, law, memory="recompute")
                shard(model, reshard_after_forward=reshard)
                if not before:
                    wn.add_weight_noise(model, law, memory="recompute")
                for seeds in (DIFFERENT, [7, 8]):
                    model.zero_grad()
                    step(model, seeds)
                    assert_all_close(gradients(model), expected_gradients(law, seeds, memory="recompute"))


def check_recompute_with_the_numbers_of_the_engine() -> None:
    found = []
    for memory in ("keep", "recompute"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 64))
        shard(wn.add_weight_noise(model, GAUSSIAN, memory=memory), reshard_after_forward=True)
        torch.manual_seed(DIFFERENT[dist.get_rank()])
        model(torch.ones(2, 64)).square().mean().backward()
        found.append(gradients(model))
    for keep, recompute in zip(*found, strict=True):
        assert torch.equal(keep, recompute)


def check_mixed_precision() -> None:
    # The weight that the forward sees is bfloat16, and so is its noise; the gradients are reduced in float32.
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for before in (True, False):
        model = build(wn.Gaussian(0.3), before, mp_policy=policy)
        single = wn.add_weight_noise(make().bfloat16(), wn.Gaussian(0.3))
        outputs = []
        for each, x in ((model, own()), (single, own().bfloat16())):
            torch.manual_seed(5)
            outputs.append(each(x))
        assert torch.equal(*outputs)
        step(model, DIFFERENT)
        expected = expected_gradients(wn.Gaussian(0.3), DIFFERENT, torch.bfloat16)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        assert_all_close(gradients(model), expected, rtol=0.02, atol=0.01)


def check_activation_checkpointing() -> None:
    for before in (True, False):
        model = wn.add_weight_noise(make(), GAUSSIAN) if before else make()
        for place in (0, 2, 4):
            model[place] = checkpoint_wrapper(model[place])
        shard(model)
        if not before:
            wn.add_weight_noise(model, GAUSSIAN)
        step(model, DIFFERENT)
        assert_all_close(gradients(model), expected_gradients(GAUSSIAN, DIFFERENT))


def check_contexts() -> None:
    for before, by_layer in layouts():
        model, single = build(GAUSSIAN, before, by_layer), wn.add_weight_noise(make(), GAUSSIAN)
        with wn.no_noise(model):
            assert torch.equal(model(own()), make()(own()))
        state = torch.get_rng_state()
        for sign in (1, -1):
            with wn.hold_noise(model, seed=3, sign=sign), wn.hold_noise(single, seed=3, sign=sign):
                assert torch.equal(model(own()), single(own()))
                assert_ranks_agree([model(batch(0))])
        assert torch.equal(torch.get_rng_state(), state)
        with wn.scale_noise(model, 0.0):
            torch.testing.assert_close(model(own()), make()(own()))
        with wn.hold_noise(model):  # Unseeded: each rank has its own.
            assert torch.equal(model(own()), model(own()))
            assert_ranks_differ(model(batch(0)))


def check_a_held_weight_follows_changes_that_are_not_counted() -> None:
    for before, by_layer in layouts():
        model, single = build(GAUSSIAN, before, by_layer), wn.add_weight_noise(make(), GAUSSIAN)
        with torch.no_grad(), wn.hold_noise(model, seed=3), wn.hold_noise(single, seed=3):
            for _ in range(5):  # All are gathered into one tensor, often at one address, without a count.
                for _ in range(2):
                    assert torch.equal(model(own()), single(own()))
                for one in model.modules():
                    if hasattr(one, "reshard"):
                        one.reshard()
                for parameter in (*model.parameters(), *single.parameters()):
                    parameter.mul_(1.5)


def check_a_hold_over_a_backward() -> None:
    model = build(GAUSSIAN)
    single = [wn.add_weight_noise(make(), GAUSSIAN) for _ in range(RANKS)]
    with wn.hold_noise(model, seed=3):
        loss_of(model, own()).backward()
    for rank, each in enumerate(single):
        with wn.hold_noise(each, seed=3):
            loss_of(each, batch(rank)).backward()
    pairs = zip(*map(gradients, single), strict=True)
    assert_all_close(gradients(model), [(a + b) / 2 for a, b in pairs])


def check_a_schedule() -> None:
    model, single = build(GAUSSIAN), wn.add_weight_noise(make(), GAUSSIAN)
    schedules = [wn.NoiseScheduler(each, wn.linear_ramp(4)) for each in (model, single)]
    for _ in range(3):
        with wn.hold_noise(model, seed=3), wn.hold_noise(single, seed=3):
            assert torch.equal(model(own()), single(own()))
        for schedule in schedules:
            schedule.step()


def check_removal() -> None:
    plain = shard(make())
    for before, by_layer in layouts():
        model, plain = build(GAUSSIAN, before, by_layer), shard(make(), by_layer)
        for _ in range(2):
            step(model, EQUAL)
        model.zero_grad()
        parameters = list(model.parameters())
        wn.remove_weight_noise(model)
        assert not wn.has_weight_noise(model)
        assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
        assert [type(m).__name__ for m in model.modules()] == [type(m).__name__ for m in plain.modules()]
        assert [type(m).__mro__[1:] for m in model.modules()] == [type(m).__mro__[1:] for m in plain.modules()]
        assert list(model.state_dict()) == list(plain.state_dict())
        for each in (model, plain):
            loss_of(each, own()).backward()
        assert_all_close(gradients(model), gradients(plain), rtol=0, atol=0)


def check_more_noise_and_less_under_the_sharding() -> None:
    model = shard(wn.add_weight_noise(make(), {"0.weight": GAUSSIAN}))
    wn.add_weight_noise(model, {"0.bias": 0.1, "2.weight": 0.1})
    single = wn.add_weight_noise(make(), {"0.weight": GAUSSIAN, "0.bias": 0.1, "2.weight": 0.1})
    with wn.hold_noise(model, seed=3), wn.hold_noise(single, seed=3):
        torch.testing.assert_close(model(own()), single(own()))
    wn.remove_weight_noise(model)
    assert torch.equal(model(own()), make()(own()))
    wn.add_weight_noise(model, GAUSSIAN)
    step(model, DIFFERENT)
    assert_all_close(gradients(model), expected_gradients(GAUSSIAN, DIFFERENT))


def check_other_parametrizations() -> None:
    def normed() -> nn.Sequential:
        model = make()
        parametrizations.weight_norm(model[0])
        return model

    single = wn.add_weight_noise(normed(), GAUSSIAN)
    for before in (True, False):
        model = wn.add_weight_noise(normed(), GAUSSIAN) if before else shard(normed())
        if before:
            shard(model)
        else:
            wn.add_weight_noise(model, GAUSSIAN)
        for each in (model, single):
            each.zero_grad()
            torch.manual_seed(5)
            loss_of(each, batch(0)).backward()
        assert_all_close(gradients(model), gradients(single))
        wn.remove_weight_noise(model)
        torch.testing.assert_close(model(own()), normed()(own()))
        assert "FSDP" in type(model[0]).__name__


def check_training_is_that_of_one_process() -> None:
    model, single = build(GAUSSIAN), wn.add_weight_noise(make(), GAUSSIAN)
    optimizers = [torch.optim.AdamW(each.parameters(), lr=0.01) for each in (model, single)]
    for number in range(3):
        for each, optimizer in zip((model, single), optimizers, strict=True):
            torch.manual_seed(number)
            loss_of(each, batch(0)).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_all_close(weights(model), weights(single))


def check_clipping() -> None:
    every: list[dict[str, Any]] = [{"k": 1.5}, {"low": -0.2, "high": 0.1}, {"k": 1.2, "per": 0}]
    for options in every:
        model, single = build(GAUSSIAN), wn.add_weight_noise(make(), GAUSSIAN)
        for each in (model, single):
            wn.clip_weights(each, **options)
        assert_all_close(weights(model), weights(single))


def check_baking_is_refused() -> None:
    model = build(GAUSSIAN)
    with pytest.raises(wn.UnsupportedParameterError, match=r"cannot write '0.weight', which is a DTensor"):
        wn.remove_weight_noise(model, bake=True)
    assert wn.has_weight_noise(model)


def check_divergence() -> None:
    model, single = build(wn.Variational()), wn.add_weight_noise(make(), wn.Variational())
    torch.testing.assert_close(whole(wn.kl_divergence(model)), wn.kl_divergence(single).detach())


def check_robustness() -> None:
    model, single = shard(make()), make()
    found = [
        wn.evaluate_robustness(
            each, lambda m: loss_of(m, batch(0)).item(), levels=[0, 1], law=GAUSSIAN, draws=3, progress=False
        )
        for each in (model, single)
    ]
    torch.testing.assert_close(found[0].values, found[1].values)
    assert torch.equal(model(own()), copy.deepcopy(single)(own()))


def check_reads_between_forwards_are_the_clean_shards() -> None:
    model = build(GAUSSIAN)
    step(model, EQUAL)
    assert model[0].weight is dict(model.named_parameters())["0.weight"]
    assert isinstance(model[0].weight, DTensor)


def check_ranges_that_were_calibrated_are_sharded_and_averaged() -> None:
    law = wn.Converter(8, learned=True, k=1.2, per="input")
    model = wn.add_activation_noise(make(), law, at="input")
    wn.calibrate_ranges(model, [own()])
    alone = copy.deepcopy(model)
    loss = loss_of(alone, batch(0)) + loss_of(alone, batch(1))
    (loss / 2).backward()
    shard(model)
    loss_of(model, own()).backward()
    assert all(isinstance(range_, DTensor) for range_ in wn.learned_strengths(model).values())
    assert all(bool(range_.grad.abs().sum() > 0) for range_ in wn.learned_strengths(alone).values())
    assert_all_close(gradients(model), gradients(alone))


def check_ranges_that_are_not_set_are_refused() -> None:
    model = shard(wn.add_activation_noise(make(), wn.Converter(8, learned=True), at="input"))
    with pytest.raises(wn.UnsupportedActivationError, match="from the batches of this process alone"):
        model(own())


def check_flat_parameters_are_refused() -> None:
    for original in (True, False):
        options: dict[str, Any] = {"device_id": torch.device("cpu"), "use_orig_params": original}
        for min_ndim in (1, 2):
            model = FullyShardedDataParallel(make(), **options)
            with pytest.raises(
                wn.UnsupportedParameterError, match=r"keeps .* in one flat tensor.* Use fully_shard"
            ):
                wn.add_weight_noise(model, 0.1, min_ndim=min_ndim)
            assert not wn.has_weight_noise(model)
        with pytest.raises(TypeError, match=r"FullyShardedDataParallel, .* use fully_shard"):
            FullyShardedDataParallel(wn.add_weight_noise(make(), 0.1), **options)(own())
