"""Tensor parallelism: the noise is that of the whole weight, bit for bit, whatever parts the processes have."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import warnings
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.cases import LAWS
from tests.torch.distributed_worker_common import (
    GAUSSIAN,
    assert_all_close,
    assert_ranks_agree,
    gradients,
    make,
    weights,
    whole,
)

X = torch.linspace(-1, 1, 16).reshape(4, 4)
SMALL, LARGE = (8, 8), (64, 64)  # torch's generator draws for the one, the engine for the other.


@functools.cache
def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


class Reader(nn.Linear):
    """Its output is its weight."""

    def forward(self, _: Tensor) -> Tensor:
        return self.weight


def reader(shape: tuple[int, int]) -> Reader:
    made = Reader(shape[1], shape[0], bias=False)
    with torch.no_grad():
        made.weight.copy_(torch.linspace(-1, 1.5, shape[0] * shape[1]).sin().reshape(shape))
    return made


def cut(model: nn.Module, placements: list[Any], over: DeviceMesh) -> nn.Module:
    """As `parallelize_module` does it, for any placements."""

    def partition(name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        part = distribute_tensor(module.weight, device_mesh, placements)  # type: ignore[arg-type]
        module.register_parameter("weight", nn.Parameter(part))

    return distribute_module(model, over, partition)


def read(model: nn.Module, seed: int | None = 5) -> list[Tensor]:
    """The noisy weight, the gradients where the loss is linear in it, and where torch's generator is then."""
    if seed is not None:
        torch.manual_seed(seed)
    model.zero_grad()
    noisy = model(torch.ones(1))
    slopes = torch.linspace(-2, 1, noisy.numel()).reshape(noisy.shape)
    if isinstance(noisy, DTensor):
        (noisy * distribute_tensor(slopes, noisy.device_mesh, noisy.placements)).sum().full_tensor().backward()
    else:
        (noisy * slopes).sum().backward()
    return [whole(noisy), *gradients(model), torch.get_rng_state()]


def assert_same(found: list[Tensor], expected: list[Tensor], what: object) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other), what


def assert_noise_of_one_process(
    spec: Any, shape: tuple[int, int], placements: list[Any], over: DeviceMesh, before: bool
) -> None:
    single = wn.add_weight_noise(reader(shape), spec)
    model: nn.Module = reader(shape)
    if before:
        wn.add_weight_noise(model, spec)
    cut(model, placements, over)
    if not before:
        wn.add_weight_noise(model, spec)
    assert isinstance(model._parameters["weight"], DTensor)
    assert_same(read(model), read(single), (spec, shape, placements, before))
    with wn.hold_noise(model, seed=3, sign=-1), wn.hold_noise(single, seed=3, sign=-1):
        assert_same(read(model), read(single), (spec, shape, placements, before, "held"))


def check_all_laws() -> None:
    rounds = itertools.cycle([(Shard(0), True), (Shard(1), False), (Shard(0), False), (Shard(1), True)])
    for spec in LAWS.values():
        for shape in (SMALL, LARGE):
            placement, before = next(rounds)
            assert_noise_of_one_process(spec, shape, [placement], mesh(), before)


class Both(nn.Linear):
    """Its output is its weight, with its bias as one column more."""

    first = "weight"

    def forward(self, _: Tensor) -> Tensor:
        second = "bias" if self.first == "weight" else "weight"
        read = {name: getattr(self, name) for name in (self.first, second)}
        return torch.cat([whole(read["weight"]), whole(read["bias"])[:, None]], dim=1)


def check_a_bias_has_the_numbers_of_its_rows() -> None:
    for size, first, cut_at in itertools.product((8, 64), ("weight", "bias"), (0, 1)):
        models: list[Any] = []
        for parallel in (False, True):
            torch.manual_seed(0)
            model = Both(size, size)
            model.first = first
            wn.add_weight_noise(model, wn.LearnedGaussian(1.0, factorised=True), min_ndim=1)
            if parallel:
                for name, one in {"weight": Shard(cut_at), "bias": Replicate() if cut_at else Shard(0)}.items():
                    part = distribute_tensor(model._parameters[name], mesh(), [one])
                    model.register_parameter(name, nn.Parameter(part))
            models.append(model)
        single, model = models
        assert isinstance(model._parameters["weight"], DTensor)
        clean = torch.cat([single._parameters["weight"], single._parameters["bias"][:, None]], dim=1)
        for hold in ({}, {"seed": 3}, {"seed": None}):
            found = []
            for one in (model, single):
                # The processes take the numbers of the first of them.
                torch.manual_seed(5 + (dist.get_rank() if one is model else 0))
                with wn.hold_noise(one, **hold) if hold else contextlib.nullcontext():
                    found.append(one(torch.ones(1)).detach())
            assert torch.equal(*found), (size, first, cut_at, hold)
            noise = (found[0] - clean).double()
            assert torch.linalg.matrix_rank(noise, rtol=1e-5) == 1, (size, first, cut_at, hold)


ELEMENTS: tuple[Any, ...] = (
    wn.Gaussian(0.2),
    wn.Gaussian(0.2, relative_to="absmax"),
    wn.Gaussian(0.2, relative_to="absmax", per=0),
    wn.Gaussian(0.2, relative_to="absmax", per=1),
    wn.Gaussian(0.2, relative_to="rms", per="output"),
    wn.Gaussian(0.2, relative_to="value"),
    wn.Uniform(0.2, relative_to="absmax", per="input"),
    wn.Uniform(0.2),
    wn.LogNormal(0.2),
)


def check_scales_on_both_dimensions() -> None:
    before = itertools.cycle((True, False))
    for spec, shape in itertools.product(ELEMENTS, (SMALL, LARGE)):
        for placement in (Shard(0), Shard(1), Replicate()):
            assert_noise_of_one_process(spec, shape, [placement], mesh(), next(before))


def check_parts_that_are_not_equal() -> None:
    for spec in (wn.Gaussian(0.2), GAUSSIAN, wn.DropConnect(0.3)):
        for shape in ((9, 7), (1, 9), (65, 63)):
            for dim in (0, 1):
                assert_noise_of_one_process(spec, shape, [Shard(dim)], mesh(), before=bool(dim))


GATHERS = "weightnoise._torch.dtensors.gathered"


def check_sizes_that_fill_no_vector() -> None:
    for spec, shape, dim in itertools.product(ELEMENTS, ((6, 14), (66, 70)), (0, 1)):
        assert_noise_of_one_process(spec, shape, [Shard(dim)], mesh(), before=bool(dim))


def check_short_dtypes() -> None:
    for spec, shape, dtype in itertools.product(ELEMENTS, ((6, 14), (66, 70)), (torch.bfloat16, torch.float64)):
        single = wn.add_weight_noise(reader(shape).to(dtype), spec)
        model = cut(wn.add_weight_noise(reader(shape).to(dtype), spec), [Shard(0)], mesh())
        assert_same(read(model), read(single), (spec, shape, dtype))


def check_without_gradients() -> None:
    for context, spec in itertools.product(
        (torch.no_grad, torch.inference_mode), (GAUSSIAN, wn.DropConnect(0.3, block=2))
    ):
        model, single = both(spec)
        with context():
            outputs = []
            for each in (model, single):
                torch.manual_seed(5)
                outputs.append(each(X))
                with wn.hold_noise(each, seed=3):
                    outputs[-1] = torch.cat((outputs[-1], each(X), each(X)))
            torch.testing.assert_close(*outputs)


def check_exports_are_refused() -> None:
    model = cut(wn.add_weight_noise(reader(SMALL), GAUSSIAN), [Shard(0)], mesh())
    with pytest.raises(wn.ExportError):
        torch.export.export(model, (torch.ones(1),), strict=False)


def check_laws_by_element_gather_nothing() -> None:
    for spec in (wn.Gaussian(0.2), wn.Gaussian(0.2, relative_to="absmax", per=0), wn.LogNormal(0.2)):
        for shape, dim in itertools.product((SMALL, LARGE), (0, 1)):
            model = cut(wn.add_weight_noise(reader(shape), spec), [Shard(dim)], mesh())
            with mock.patch(GATHERS, side_effect=AssertionError):
                model(torch.ones(1))
            wn.remove_weight_noise(model)
            wn.add_weight_noise(model, wn.Gaussian(0.2, relative_to="std"))
            with mock.patch(GATHERS, side_effect=AssertionError), pytest.raises(AssertionError):
                model(torch.ones(1))


def check_processes_with_different_seeds_agree() -> None:
    for shape in (SMALL, LARGE):
        for placement in (Shard(0), Replicate()):
            single = wn.add_weight_noise(reader(shape), GAUSSIAN)
            model = cut(wn.add_weight_noise(reader(shape), GAUSSIAN), [placement], mesh())
            own = 5 + dist.get_rank()
            torch.manual_seed(own)
            before = torch.get_rng_state()
            found = read(model, seed=None)
            assert_same(found[:2], read(single)[:2], placement)  # That of the first process, seed 5.
            if own != 5:  # Data and dropout go on with the seed that this process has.
                assert torch.equal(found[2], before)
            with wn.hold_noise(model):
                first = read(model, seed=own)[0]
                assert torch.equal(first, read(model, seed=own + 10)[0])
            assert_ranks_agree([first])
            local: Any = model(torch.ones(1))
            if placement == Replicate():
                assert_ranks_agree([local.to_local()])


def check_holds() -> None:
    for shape in (SMALL, LARGE):
        single = wn.add_weight_noise(reader(shape), wn.ProgrammingNoise())
        model: Any = cut(wn.add_weight_noise(reader(shape), wn.ProgrammingNoise()), [Shard(0)], mesh())
        for reads in ("held", "fresh"):
            with (
                wn.hold_noise(model, seed=3, reads=reads) as held,
                wn.hold_noise(single, seed=3, reads=reads) as held_single,
            ):
                for _ in range(2):
                    assert_same(read(model), read(single), reads)
                    assert_same([whole(model.weight)], [whole(single.weight)], reads)  # Outside of forwards too.
                    held.reset()
                    held_single.reset()
        assert torch.equal(whole(model.weight), reader(shape).weight)


def check_a_hold_takes_the_seed_of_the_first_process() -> None:
    for shape, reads in itertools.product((SMALL, LARGE), ("held", "fresh")):
        for spec in (GAUSSIAN, LAWS["correlated_die"]):
            single = wn.add_weight_noise(reader(shape), spec)
            model = cut(wn.add_weight_noise(reader(shape), spec), [Replicate()], mesh())
            own, first = (-(2**70) - dist.get_rank(), -(2**70))
            with wn.hold_noise(model, seed=own, reads=reads), wn.hold_noise(single, seed=first, reads=reads):
                assert_same(read(model)[:2], read(single)[:2], reads)


def check_a_law_of_a_user_that_looks_at_the_weight() -> None:
    # Its draw looks at the numbers of the whole weight.
    class Shuffled:
        def draw(self, weight: Tensor) -> Tensor:
            return weight.detach().flatten()[torch.randperm(weight.numel())].reshape(weight.shape)

        def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
            return weight + factor * noise

    for dim in (0, 1):
        assert_noise_of_one_process(Shuffled(), SMALL, [Shard(dim)], mesh(), before=bool(dim))


def parallel(model: nn.Module) -> nn.Module:
    return parallelize_module(model, mesh(), {"0": ColwiseParallel(), "2": RowwiseParallel()})


def both(spec: Any) -> tuple[nn.Module, nn.Module]:
    return wn.add_weight_noise(parallel(make()), spec), wn.add_weight_noise(make(), spec)


def check_a_plan_of_parallel_layers() -> None:
    for spec in (GAUSSIAN, wn.Gaussian(0.2), wn.LearnedGaussian(0.3), {"*": 0.1}):
        for before in (True, False):
            model = (
                parallel(wn.add_weight_noise(make(), spec))
                if before
                else wn.add_weight_noise(parallel(make()), spec)
            )
            single = wn.add_weight_noise(make(), spec)
            assert list(model.state_dict()) == list(single.state_dict())
            optimizers = [torch.optim.AdamW(each.parameters(), lr=0.01) for each in (model, single)]
            for number in range(3):
                for each, optimizer in zip((model, single), optimizers, strict=True):
                    torch.manual_seed(number)
                    optimizer.zero_grad()
                    each(X).square().mean().backward()
                    optimizer.step()
                assert_all_close(gradients(model), gradients(single))
            assert_all_close(weights(model), weights(single))


def check_embeddings() -> None:
    tokens = torch.tensor([[0, 3, 9], [3, 1, 63]])
    for spec in (wn.Gaussian(0.2), GAUSSIAN, wn.Gaussian(0.2, relative_to="rms")):
        for style, padding in itertools.product((RowwiseParallel, ColwiseParallel), (None, 3)):
            models = []
            for cuts in (False, True):
                torch.manual_seed(0)
                table = nn.Sequential(nn.Embedding(64, 64, padding_idx=padding))
                wn.add_weight_noise(table, spec)
                if cuts:
                    layout = style(input_layouts=Replicate(), output_layouts=Replicate())
                    parallelize_module(table, mesh(), {"0": layout})
                models.append(table)
            found = []
            for table in models:
                torch.manual_seed(5)
                output = table(tokens)
                output.square().sum().backward()
                found.append([output, *gradients(table)])
            assert_same(found[1], found[0], (spec, style, padding))


def check_contexts() -> None:
    model, single = both(GAUSSIAN)
    plain = parallel(make())
    with wn.no_noise(model):
        assert torch.equal(model(X), plain(X))
    schedules = [wn.NoiseScheduler(each, wn.linear_ramp(4)) for each in (model, single)]
    for schedule in schedules:
        schedule.step()
    with wn.scale_noise(model, 0.5), wn.scale_noise(single, 0.5):
        outputs = []
        for each in (model, single):
            torch.manual_seed(5)
            outputs.append(each(X))
        torch.testing.assert_close(*outputs)
    model.eval()
    wn.remove_weight_noise(model)
    wn.add_weight_noise(model, GAUSSIAN, when="training")
    assert torch.equal(model(X), plain(X))


def check_checkpointing() -> None:
    for spec in (GAUSSIAN, wn.DropConnect(0.3)):
        found = []
        for again in (False, True):
            model = parallel(wn.add_weight_noise(make(), spec))
            torch.manual_seed(5)
            output = checkpoint(model, X, use_reentrant=False) if again else model(X)
            output.square().mean().backward()
            found.append([*gradients(model), torch.get_rng_state()])
        assert_same(found[1], found[0], spec)


class Head(nn.Module):
    """Reads the weight of another module, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Any:
        return self.table.weight, self.table.weight


def check_a_read_by_another_module() -> None:
    model = parallelize_module(wn.add_weight_noise(Head(), wn.Gaussian(0.2)), mesh(), {"table": ColwiseParallel()})
    single = wn.add_weight_noise(Head(), wn.Gaussian(0.2))
    single.table.load_state_dict({"weight": whole(model.table.weight)})
    for each in (model, single):
        each.read = []
        torch.manual_seed(5)
        each.read = [whole(one) for one in each(X)]
    assert_same(model.read, single.read, "another module")


def check_removal_and_copies() -> None:
    model, _ = both(GAUSSIAN)
    parameters = list(model.parameters())
    copied = copy.deepcopy(model)
    with wn.hold_noise(model, seed=3), wn.hold_noise(copied, seed=3):
        assert torch.equal(copied(X), model(X))
    with pytest.raises(wn.UnsupportedParameterError, match=r"cannot write '0.weight', which is a DTensor"):
        wn.remove_weight_noise(model, bake=True)
    wn.remove_weight_noise(model)
    plain = parallel(make())
    assert [id(one) for one in model.parameters()] == [id(one) for one in parameters]
    assert [type(one) for one in model.modules()] == [type(one) for one in plain.modules()]
    assert torch.equal(model(X), plain(X))


def check_what_is_refused() -> None:
    here = r"Parameter '0.weight' is a DTensor \(tensor parallelism\), where "
    refused: list[tuple[dict[str, Any], str]] = [
        ({"estimator": "flipout"}, "estimator='flipout' is not supported.*Use estimator='shared'"),
        ({"estimator": "local"}, "estimator='local' is not supported.*Use estimator='shared'"),
        ({"memory": "recompute"}, "memory='recompute' is not supported.*Use memory='keep'"),
    ]
    for options, text in refused:
        model = parallel(make())
        with pytest.raises(wn.UnsupportedParameterError, match=here + text):
            wn.add_weight_noise(model, wn.Gaussian(0.3), **options)
        assert not wn.has_weight_noise(model)
        model = parallel(wn.add_weight_noise(make(), wn.Gaussian(0.3), **options))
        with pytest.raises(wn.UnsupportedParameterError, match=here + text):
            model(X)
        with wn.no_noise(model):
            torch.testing.assert_close(model(X), make()(X))
    summed = reader(SMALL)
    part = DTensor.from_local(summed.weight.detach(), mesh(), [Partial()], run_check=False)
    summed.register_parameter("weight", nn.Parameter(part))
    with pytest.raises(wn.UnsupportedParameterError, match="a sum over processes"):
        wn.add_weight_noise(summed, wn.Gaussian(0.3))


def check_noise_that_rounds_away_warns() -> None:
    for spec in (wn.Gaussian(1e-5), wn.Gaussian(1e-5, relative_to="rms")):
        model = cut(wn.add_weight_noise(reader(LARGE), spec), [Shard(0)], mesh()).bfloat16()
        with pytest.warns(wn.NoiseRoundsAwayWarning, match="parameter 'weight'"):
            model(torch.ones(1))


def check_what_looks_at_the_model() -> None:
    model, single = both(wn.Variational())
    torch.testing.assert_close(whole(wn.kl_divergence(model)), wn.kl_divergence(single).detach())
    for options in ({"k": 2.5}, {"low": -0.2, "high": 0.1}):
        for each in (model, single):
            wn.clip_weights(each, **options)  # type: ignore[arg-type]
        assert_all_close(weights(model), weights(single))
    plan = [str(wn.plan_weight_noise(each, GAUSSIAN)) for each in (parallel(make()), make())]
    assert plan[0] == plan[1]
    found = [
        wn.evaluate_robustness(
            each, lambda m: m(X).square().mean().item(), levels=[0, 1], law=GAUSSIAN, draws=2, progress=False
        )
        for each in (parallel(make()), make())
    ]
    torch.testing.assert_close(found[0].values, found[1].values)


def check_compiled_code_is_interrupted() -> None:
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")  # Dynamo asks for it.
    for spec in (GAUSSIAN, wn.DropConnect(0.3)):
        model = parallel(wn.add_weight_noise(make(), spec))
        found = []
        for called in (model, torch.compile(model, backend="eager")):
            torch.manual_seed(5)
            model.zero_grad()
            called(X).square().mean().backward()
            found.append([*gradients(model), torch.get_rng_state()])
        assert_all_close(found[1], found[0])  # The third layer is compiled, and rounds in another order.
    torch.compiler.reset()


def check_time_passes_in_a_hold() -> None:
    for shape, placement in itertools.product((SMALL, LARGE), (Shard(0), Replicate())):
        for seed in (3, None):
            single = wn.add_weight_noise(reader(shape), wn.Gaussian(0.2))
            model = cut(wn.add_weight_noise(reader(shape), wn.Gaussian(0.2)), [placement], mesh())
            found: list[list[Tensor]] = []
            for each, own in ((model, dist.get_rank()), (single, 0)):
                torch.manual_seed(own)
                with wn.hold_noise(each, seed=seed, rho=0.9) as held:
                    found.append(read(each)[:2])
                    held.advance(2)
                    found[-1] += read(each)[:2]
            assert_same(found[0], found[1], (shape, seed))
