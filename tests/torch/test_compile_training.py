"""torch.compile over a training life: counted compiles, equal blocks, contexts, wrappers, inductor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters
from torch.func import functional_call, grad
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.cases import CASES, NO_CONTEXTS, needs_torch

# torch's own, while it compiles: with noise and without.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
]

Backend = Callable[..., Any] | str


class Block(nn.Module):
    """One of many equal parts of a model."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up = nn.Linear(4, width)
        self.down = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.down(torch.tanh(self.up(x)))
        return output


def with_weight_noise(model: nn.Module) -> nn.Module:
    return wn.add_weight_noise(model, 0.1)


def with_flipout(model: nn.Module) -> nn.Module:
    return wn.add_weight_noise(model, 0.1, estimator="flipout")


def with_local(model: nn.Module) -> nn.Module:
    return wn.add_weight_noise(model, 0.1, estimator="local")


def with_activation_noise(model: nn.Module) -> nn.Module:
    return wn.add_activation_noise(model, 0.1)


def with_both(model: nn.Module) -> nn.Module:
    return wn.add_activation_noise(wn.add_weight_noise(model, wn.Gaussian(0.1, relative_to="absmax")), 0.1)


Kind = Callable[[nn.Module], nn.Module]
KINDS: list[Kind] = [with_weight_noise, with_flipout, with_both]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
CONSTANT_FLOATS = needs_torch("2.9", "its Dynamo makes constants of strengths, each of which is a compile")
CONTEXTS = needs_torch("2.9", NO_CONTEXTS)
FLAG = needs_torch("2.9", "its Dynamo has no flag for checkpoints inside compiled code that have effects")
OWN_HOOKS = needs_torch("2.9", "its Dynamo compiles anew for each block with hooks of its own")

X = torch.linspace(-1.0, 1.0, 12).reshape(3, 4)


# By version of torch; 2.5 has none.
RAISES_AT_LIMIT = ("fail_on_recompile_limit_hit", "fail_on_cache_limit_hit")


@pytest.fixture(autouse=True)
def _no_way_back_to_eager() -> Iterator[None]:
    raises = {name: True for name in RAISES_AT_LIMIT if hasattr(torch._dynamo.config, name)}
    with torch._dynamo.config.patch(raises):
        yield


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def no_recompile() -> AbstractContextManager[None]:
    patch: AbstractContextManager[None] = torch._dynamo.config.patch(error_on_recompile=True)
    return patch


def compiled_whole(model: Callable[..., Any], backend: Backend = "aot_eager", **options: Any) -> Any:
    return torch.compile(model, backend=backend, fullgraph=True, **options)


def gradients(call: Any, model: nn.Module, x: Tensor = X) -> list[Tensor]:
    model.zero_grad()
    call(x).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_equal_at_a_held_draw(compiled: Any, model: nn.Module, x: Tensor = X) -> None:
    with wn.hold_noise(model, seed=0):
        output = model(x)  # First, since the first forward in a hold draws for activations, which breaks a graph.
        assert_close(compiled(x), output)
        for found, expected in zip(gradients(compiled, model, x), gradients(model, model, x), strict=True):
            assert_close(found, expected)


@pytest.mark.parametrize("width", [8, 600])  # Large weights have their noise from another generator in eager code.
@kinds
def test_training_steps_draw_afresh_and_compile_once(kind: Kind, width: int) -> None:
    model = kind(Block(width))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    compiled = compiled_whole(model)
    losses = []
    for step in range(5):
        loss = compiled(X).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        assert graphs() == 1, f"step {step} compiled again"
    assert len(set(losses)) == 5
    assert_equal_at_a_held_draw(compiled, model)


@needs_torch("2.6", "its Dynamo makes constants of the factors, each of which is a compile")
@kinds
def test_a_schedule_and_a_factor_are_followed_without_recompiling(kind: Kind) -> None:
    model = kind(Block())
    schedule = wn.NoiseScheduler(model, wn.linear_ramp(10, first=0.2))
    compiled = compiled_whole(model)
    with wn.hold_noise(model, seed=0):
        model(X)  # As in assert_equal_at_a_held_draw.
        outputs = [compiled(X)]
        with no_recompile():
            for _ in range(4):
                schedule.step()
                outputs.append(compiled(X))
                assert_close(outputs[-1], model(X))
    assert len({output.sum().item() for output in outputs}) == 5
    compiled(X)
    for factor in (0.9, 0.8):  # The second factor makes a variable of what was a constant.
        with wn.scale_noise(model, factor):
            compiled(X)
    with no_recompile():
        for factor in (0.7, 0.6, 0.5):
            with wn.scale_noise(model, factor):
                assert not torch.equal(compiled(X), compiled(X))


@kinds
def test_toggling_costs_one_compile(kind: Kind) -> None:
    plain = Block()
    model = kind(copy.deepcopy(plain))
    compiled = compiled_whole(model)
    compiled(X)
    assert graphs() == 1
    with wn.no_noise(model):
        assert_close(compiled(X), plain(X))
    assert graphs() == 2
    with no_recompile():
        for _ in range(3):
            assert not torch.equal(compiled(X), compiled(X))
            with wn.no_noise(model):
                assert_close(compiled(X), plain(X))


def test_training_noise_compiles_once_for_each_mode() -> None:
    model = wn.add_weight_noise(Block(), 0.1, when="training")
    compiled = compiled_whole(model)
    for _ in range(3):
        assert not torch.equal(compiled(X), compiled(X))
        model.eval()
        assert_close(compiled(X), model(X))
        model.train()
    assert graphs() == 2


@pytest.mark.parametrize(
    "kind",
    [
        with_weight_noise,
        with_flipout,
        with_local,
        pytest.param(with_both, marks=OWN_HOOKS),
        pytest.param(with_activation_noise, marks=OWN_HOOKS),
    ],
    ids=lambda kind: kind.__name__,
)
def test_twelve_equal_blocks_share_their_code_in_training_and_evaluation(kind: Kind) -> None:
    blocks = nn.Sequential(*[Block() for _ in range(12)])
    kind(blocks)
    for block in blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    for step in range(3):
        blocks(X).square().mean().backward()
        with wn.no_noise(blocks), torch.no_grad():
            blocks(X)
        # In the first step the input of the first block needs no gradient: two graphs with noise, one without.
        assert graphs() <= 4, f"{graphs()} compiles after step {step}"
    with wn.no_noise(blocks[3]):
        assert torch.equal(blocks[3](X), blocks[3](X))
        assert not torch.equal(blocks[4](X), blocks[4](X))


LAWS_BY_BLOCK: list[wn.Noise | None] = [
    wn.Gaussian(0.1),
    wn.Uniform(0.1),
    None,
    wn.Gaussian(0.1, relative_to="absmax"),
    wn.DropConnect(0.3),
    wn.StuckAt(0.3),
]


@pytest.mark.parametrize("way", [pytest.param("strengths", marks=CONSTANT_FLOATS), "laws"])
def test_blocks_that_share_code_keep_their_own_law_and_draw(way: str) -> None:
    blocks = nn.ModuleList([Block() for _ in range(12)])

    def choose(name: str, parameter: Tensor, module: nn.Module) -> Any:
        place = int(name.partition(".")[0])
        if parameter.ndim < 2:
            return None
        return wn.Gaussian(0.05 * (1 + place)) if way == "strengths" else LAWS_BY_BLOCK[place % len(LAWS_BY_BLOCK)]

    wn.add_weight_noise(blocks, choose)
    with wn.hold_noise(blocks, seed=0):
        for block in blocks:
            assert_close(compiled_whole(block)(X), block(X))
    assert graphs() <= (2 if way == "strengths" else len(LAWS_BY_BLOCK))


def test_noise_removed_from_one_block_leaves_the_code_of_the_others() -> None:
    blocks = [with_weight_noise(Block()) for _ in range(4)]
    compiled = [compiled_whole(block) for block in blocks]
    for call in compiled:
        call(X)
    wn.remove_weight_noise(blocks[1])
    assert [torch.equal(call(X), call(X)) for call in compiled] == [False, True, False, False]
    assert_close(compiled[1](X), blocks[1](X))


@kinds
@pytest.mark.parametrize("way", ["torch.compile", "Module.compile"])
def test_noise_added_after_compiling_changed_and_removed(kind: Kind, way: str) -> None:
    model = Block()
    if way == "torch.compile":
        compiled: Any = compiled_whole(model)
    else:
        model.compile(backend="aot_eager", fullgraph=True)
        compiled = model
    clean = compiled(X)
    kind(model)
    assert not torch.equal(compiled(X), compiled(X))
    if wn.noisy_activations(model):
        wn.remove_activation_noise(model)
    wn.add_weight_noise(wn.remove_weight_noise(model), wn.Uniform(0.3))
    eager = copy.deepcopy(model)  # torch leaves what Module.compile made out of a copy.
    with wn.hold_noise(model, seed=0), wn.hold_noise(eager, seed=0):
        assert_close(compiled(X), eager(X))
    wn.remove_weight_noise(model)
    assert torch.equal(compiled(X), clean)


def test_noise_baked_into_a_compiled_model() -> None:
    model = with_weight_noise(Block())
    compiled = compiled_whole(model)
    with wn.hold_noise(model, seed=0):
        held = compiled(X)
        wn.remove_weight_noise(compiled, bake=True)
    assert_close(compiled(X), held)


def test_the_wrapper_that_torch_compile_made_stands_for_its_module() -> None:
    model = Block()
    compiled: Any = compiled_whole(model)
    assert wn.add_weight_noise(compiled, 0.1) is compiled
    assert list(wn.noisy_parameters(compiled)) == list(wn.noisy_parameters(model)) == ["up.weight", "down.weight"]
    assert wn.has_weight_noise(compiled)
    wn.NoiseScheduler(compiled, lambda step: 1.0)
    for context in (wn.no_noise(compiled), wn.hold_noise(compiled, seed=0), wn.scale_noise(compiled, 0.0)):
        with context:
            assert torch.equal(compiled(X), compiled(X))
            assert torch.equal(model(X), model(X))
    assert not torch.equal(compiled(X), compiled(X))
    report = wn.evaluate_robustness(compiled, lambda m: m(X).mean().item(), levels=[0.0, 1.0], draws=2)
    assert report.values[0].std() == 0 < report.values[1].std()
    wn.remove_weight_noise(compiled)
    assert not wn.has_weight_noise(model)
    assert type(model.up) is nn.Linear
    wn.add_activation_noise(compiled, 0.1)
    assert not torch.equal(compiled(X), compiled(X))
    wn.remove_activation_noise(compiled)
    assert torch.equal(compiled(X), compiled(X))


def test_a_part_that_is_compiled_already_has_the_names_that_torch_gives_it() -> None:
    model = nn.Sequential(compiled_whole(Block()), nn.Linear(4, 2))
    wn.add_weight_noise(model, {"*.up.weight": 0.1, "1.weight": 0.1})
    assert list(wn.noisy_parameters(model)) == ["0._orig_mod.up.weight", "1.weight"]
    assert set(wn.noisy_parameters(model)) < {name for name, _ in model.named_parameters()}
    assert not torch.equal(model[0](X), model[0](X))
    with wn.no_noise(model):
        assert torch.equal(model(X), model(X))
    wn.remove_weight_noise(model)
    assert torch.equal(model(X), model(X))


def test_a_copy_of_a_compiled_model_has_noise_of_its_own() -> None:
    compiled: Any = compiled_whole(with_weight_noise(Block()))
    compiled(X)
    other = copy.deepcopy(compiled)
    with wn.no_noise(compiled):
        assert torch.equal(compiled(X), compiled(X))
        assert not torch.equal(other(X), other(X))
    wn.remove_weight_noise(other)
    assert torch.equal(other(X), other(X))
    assert not torch.equal(compiled(X), compiled(X))


@CONTEXTS
def test_forced_and_scaled_inside_the_compiled_function() -> None:
    model = wn.add_weight_noise(Block(), 0.1, when="training").eval()

    def forced(x: Tensor) -> tuple[Tensor, Tensor]:
        with wn.force_noise(model):
            noisy = model(x)
        return model(x), noisy

    clean, noisy = compiled_whole(forced)(X)
    assert_close(clean, model(X))
    assert not torch.equal(clean, noisy)

    def scaled(x: Tensor, factor: float) -> Tensor:
        with wn.scale_noise(model, factor):
            output: Tensor = model(x)
            return output

    compiled = compiled_whole(scaled)
    with wn.hold_noise(model.train(), seed=0):
        found = [compiled(X, factor) for factor in (0.1, 0.2, 0.3, 0.4, 0.5)]
        for output, factor in zip(found, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
            assert_close(output, scaled(X, factor))
    assert graphs() <= 3  # One for the first function; then a constant factor, then a variable.


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin:UserWarning")
def test_a_seeded_hold_inside_the_compiled_function_breaks_its_graph_and_is_right() -> None:
    model = with_weight_noise(Block())

    def held(x: Tensor) -> Tensor:
        with wn.hold_noise(model, seed=0):
            output: Tensor = model(x)
            return output

    with pytest.raises(Unsupported):
        compiled_whole(held)(X)
    assert_close(torch.compile(held, backend="aot_eager")(X), held(X))


@kinds
def test_batches_of_any_size_share_one_graph(kind: Kind) -> None:
    model = kind(Block())
    compiled = compiled_whole(model, dynamic=True)
    for size in (2, 3, 5, 7):
        x = torch.randn(size, 4)
        assert not torch.equal(compiled(x), compiled(x))
    assert graphs() == 1
    for size in (4, 6) if kind is with_weight_noise else ():
        assert_equal_at_a_held_draw(compiled, model, torch.randn(size, 4))


def test_gradient_modes_and_autocast() -> None:
    model = with_weight_noise(Block())
    compiled = compiled_whole(model)
    for context in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            assert not torch.equal(compiled(X), compiled(X))
            with wn.hold_noise(model, seed=0):
                assert_close(compiled(X), model(X))
    assert_equal_at_a_held_draw(compiled, model)


def test_a_seed_makes_a_compiled_run_repeat() -> None:
    model = with_both(Block())
    compiled = compiled_whole(model)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(torch.stack([compiled(X), compiled(X)]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_functional_call_and_func_grad_in_one_graph() -> None:
    model = with_weight_noise(Block())
    given = {name: torch.randn_like(p) for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        output: Tensor = functional_call(model, parameters, (X,)).square().sum()
        return output

    with wn.hold_noise(model, seed=0):
        found, expected = compiled_whole(grad(loss))(given), grad(loss)(given)
    for name, gradient in expected.items():
        assert_close(found[name], gradient)


def test_tied_weights() -> None:
    model, x = wn.add_weight_noise(CASES["tied"].model(), 0.1), CASES["tied"].batch()
    assert_equal_at_a_held_draw(compiled_whole(model), model, x)


def assert_gradient_at_the_drawn_weight(call: Callable[[Tensor], Tensor]) -> None:
    """For ``call(x) = sin(x @ weight.T)``: the output at the unit matrix tells the weight that was drawn."""
    x = torch.eye(4, requires_grad=True)
    output = call(x)
    output.sum().backward()
    weight = torch.asin(output.detach()).T
    assert_close(x.grad, torch.cos(weight.T) @ weight)


def small_layer() -> nn.Module:
    layer = nn.Linear(4, 4, bias=False)
    nn.init.uniform_(layer.weight, -0.4, 0.4)
    return wn.add_weight_noise(layer, wn.Uniform(0.5))


@FLAG
def test_a_checkpoint_inside_compiled_code_breaks_the_graph_or_needs_torchs_flag() -> None:
    layer = small_layer()

    def call(x: Tensor) -> Tensor:
        output: Tensor = checkpoint(lambda x: torch.sin(layer(x)), x, use_reentrant=False)
        return output

    with pytest.raises(Unsupported, match="skip_fwd_side_effects_in_bwd_under_checkpoint"):
        compiled_whole(call)(torch.eye(4, requires_grad=True))
    assert_gradient_at_the_drawn_weight(torch.compile(call, backend="aot_eager"))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True):
        assert_gradient_at_the_drawn_weight(compiled_whole(call))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_compiled_code_inside_a_checkpoint(use_reentrant: bool) -> None:
    layer = small_layer()
    compiled = compiled_whole(lambda x: torch.sin(layer(x)))
    assert_gradient_at_the_drawn_weight(lambda x: checkpoint(compiled, x, use_reentrant=use_reentrant))


@pytest.mark.slow
def test_inductor_trains_with_schedules_and_contexts() -> None:
    model = with_both(Block())
    schedule = wn.NoiseScheduler(model, wn.linear_ramp(10, first=0.5))
    compiled = compiled_whole(model, "inductor")
    losses = []
    with no_recompile():
        for _ in range(3):
            loss = compiled(X).square().mean()
            loss.backward()
            schedule.step()
            losses.append(loss.item())
    assert len(set(losses)) == 3
    with wn.no_noise(model):
        assert_close(compiled(X), model(X))
    assert graphs() == 2
    assert_equal_at_a_held_draw(compiled, model)
    with no_recompile():
        schedule.step()
        assert not torch.equal(compiled(X), compiled(X))
        assert_equal_at_a_held_draw(compiled, model)


@pytest.mark.slow
def test_inductor_draws_flipout_afresh_and_repeats_with_the_seed() -> None:
    model = with_flipout(Block())
    compiled = compiled_whole(model, "inductor")
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(compiled(X))
        found[-1].sum().backward()
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.slow
@FLAG
def test_inductor_recomputes_a_checkpoint_with_the_same_draw() -> None:
    layer = small_layer()

    def call(x: Tensor) -> Tensor:
        output: Tensor = checkpoint(lambda x: torch.sin(layer(x)), x, use_reentrant=False)
        return output

    with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True):
        assert_gradient_at_the_drawn_weight(compiled_whole(call, "inductor"))


@pytest.mark.slow
def test_inductor_gives_equal_blocks_noise_of_their_own_and_shares_their_code() -> None:
    blocks = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(12)])
    for parameter in blocks.parameters():
        nn.init.zeros_(parameter)
    wn.add_weight_noise(blocks, 0.1)
    compiled = [compiled_whole(block, "inductor") for block in blocks]
    outputs = [call(torch.eye(4)) for call in compiled]
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == 12
    assert graphs() == 1
    torch._dynamo.reset()
    # In one graph with its backward, where torch.normal would give layers of one shape equal noise.
    x = torch.eye(4, requires_grad=True)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return blocks[0](x), blocks[1](x)

    first, second = compiled_whole(both, "inductor")(x)
    (first.sum() + second.sum()).backward()
    assert not torch.equal(first, second)
    # With x the unit matrix, an output is the weight transposed: each row of the gradient is its sum over outputs.
    assert_close(x.grad, (first + second).detach().sum(dim=1).expand(4, 4))
