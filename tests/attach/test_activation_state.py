"""What laws learn and measure on activations: when it is set, and how it goes with the model."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from weightnoise._contexts import only_noise

COMPILES = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
NAME = "0.activation_noise.input.range"


def plain(size: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 3))


def noisy(spec: Any, size: int = 8, at: Any = "input") -> nn.Sequential:
    return wn.add_activation_noise(plain(size), spec, at=at)


def batches(count: int, size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, size, generator=generator) for _ in range(count)]


def range_of(model: nn.Module) -> Tensor:
    found: Tensor = model.get_parameter(NAME) if NAME in dict(model.named_parameters()) else model.get_buffer(NAME)
    return found


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("method", ["max", "std"])
def test_the_first_batches_in_training_mode_set_the_range(size: int, learned: bool, method: Any) -> None:
    model = noisy({"0": wn.Converter(8, range=method, k=2.0, learned=learned, batches=3)}, size)
    data = batches(5, size)
    for count, x in enumerate(data, start=1):
        y = model(x)
        seen = data[: min(count, 3)]
        sizes = [one.abs().max() if method == "max" else 2.0 * one.std(correction=0) for one in seen]
        expected = torch.stack(sizes).max() if method == "max" else torch.stack(sizes).mean()
        assert_close(range_of(model), expected.reshape(1))
        assert model.get_buffer("0.activation_noise.input.batches").item() == min(count, 3)
        with wn.no_noise(model):
            rounded = wn.Converter(8, range=range_of(model).item()).apply(x, None, 1.0)
            assert_close(y, model(rounded))
        model.zero_grad()
        y.sum().backward()
        if learned:  # Until it is set it has the gradient 0, which DDP can average.
            moved = range_of(model).grad is not None and bool(range_of(model).grad.abs() > 0)  # type: ignore[union-attr]
            assert moved == (count > 3 and bool((x.abs() > expected).any()))
    before = range_of(model).detach().clone()
    model.eval()(100.0 * data[0])
    assert torch.equal(range_of(model), before)


def test_evaluation_sets_no_range_and_says_so_where_there_is_none() -> None:
    model = noisy({"0": wn.Converter(8)}).eval()
    with pytest.raises(
        wn.UnsupportedActivationError, match=r"the input of module '0' takes its range from the data"
    ):
        model(batches(1)[0])
    assert range_of(model).isnan().all()
    with wn.no_noise(model):
        assert torch.equal(model(batches(1)[0]), plain()(batches(1)[0]))


def test_a_batch_that_is_empty_or_infinite_sets_nothing() -> None:
    model = noisy({"0": wn.Converter(8, batches=2)})
    x = batches(1)[0]
    model(x)
    before = range_of(model).clone()
    model(torch.full((2, 8), torch.inf))
    model(torch.empty(0, 8))
    assert torch.equal(range_of(model), before)
    model(2 * x)
    assert_close(range_of(model), 1.5 * before)


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("group", [None, "dac"])
@pytest.mark.parametrize("what", ["batches", "both", "range"])
def test_what_is_set_to_0_by_hand_is_set_anew(size: int, learned: bool, group: Any, what: str) -> None:
    model = noisy(wn.Converter(8, range="max", learned=learned, group=group, batches=1), size)
    (x,) = batches(1, size)
    wn.calibrate_ranges(model, [x])
    state = model[0].activation_noise.input
    with torch.no_grad():
        for name in ("range", "batches"):
            if what in (name, "both"):
                getattr(state, name).zero_()
    if what == "range" and learned:  # Of a Parameter it is a value: all is clipped, and its gradient moves it.
        model(x).sum().backward()
        assert range_of(model).item() == 0.0
        assert range_of(model).grad != 0
        return
    with pytest.raises(wn.UnsupportedActivationError, match="takes its range from the data and has seen none"):
        model.eval()(x)
    model.train()[0](2 * x)
    assert range_of(model).item() == 2 * x.abs().max().item()
    assert state.batches.item() == 1  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("method", [None, "max", "std", "quantile"])
def test_calibration_is_that_of_clean_activations(learned: bool, method: Any) -> None:
    law = wn.Converter(4, range="max", k=1.5, quantile=0.8, learned=learned)
    model = wn.add_weight_noise(noisy({"0": law, "2": law}), 0.5)
    model[1].eval()
    data = batches(4)
    found = wn.calibrate_ranges(model, [(x, "label") for x in data], method=method)
    assert list(found) == [NAME, "2.activation_noise.input.range"]
    for name, inputs in zip(found, (data, [plain()[:2](x) for x in data]), strict=True):
        one = wn.Converter(4, range=method or "max", k=1.5, quantile=0.8)
        each = torch.stack([one.measured(x).flatten() for x in inputs])
        assert_close(found[name], each.amax(0) if method in (None, "max") else each.mean(0))
        assert torch.equal(model.state_dict()[name], found[name])
    assert [module.training for module in model] == [True, False, True]
    assert not any(module._forward_hooks for module in model)
    # For good: training mode moves them no more.
    model(100 * data[0])
    assert torch.equal(range_of(model), found[NAME])
    again = wn.calibrate_ranges(model, lambda m: m(2 * data[0]), method="max")
    assert_close(again[NAME], 2 * data[0].abs().max().reshape(1))


def test_calibration_that_cannot_be() -> None:
    model = noisy({"0": wn.Converter(8, range=2.0)})
    with pytest.raises(wn.NotNoisyError, match="takes its range from the data"):
        wn.calibrate_ranges(model, batches(1))
    assert NAME not in model.state_dict()
    model = noisy({"0": wn.Converter(8), "2": wn.Converter(8)})
    with pytest.raises(wn.OptionError, match="no batch has reached the converter on the input of module '2'"):
        wn.calibrate_ranges(model, lambda m: m[0](batches(1)[0]))
    assert range_of(model).isnan().all()
    assert not model[0]._forward_pre_hooks.keys() - {next(iter(model[0]._forward_pre_hooks))}
    with pytest.raises(ValueError, match=r"calibrate_ranges\(method=...\)"):
        wn.calibrate_ranges(model, batches(1), method="median")  # type: ignore[arg-type]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("first", [1, 2, 4])
def test_a_recomputation_counts_no_batch_and_sees_the_range_of_its_forward(reentrant: bool, first: int) -> None:
    gradients = []
    for wrapped in (False, True):
        model = noisy({"*": wn.Converter(3, learned=True, batches=first)})
        wn.add_activation_noise(model, {"0": wn.Converter(4, range=0.7, relative_to="weights", learned=True)})
        data = [x.requires_grad_() for x in batches(3)]
        losses = []
        for x in data:  # Both forwards before any backward: the range moves in between.
            y = checkpoint(model, x, use_reentrant=reentrant) if wrapped else model(x)
            losses.append(y.square().sum())
        ranges = range_of(model).detach().clone()
        sum(losses).backward()  # type: ignore[union-attr]
        assert torch.equal(range_of(model), ranges)
        assert model.get_buffer("0.activation_noise.input.batches").item() == min(first, 3)
        gradients.append([p.grad for p in model.parameters()])
    assert_close(gradients[1], gradients[0])


def test_states_go_with_copies_pickles_and_checkpoints() -> None:
    model = noisy({"0": wn.Converter(8, batches=2, learned=True), "2": wn.Converter(4, range="max", batches=2)})
    first, second, third = batches(3)
    model(first)
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    fresh = noisy({"0": wn.Converter(8, batches=2, learned=True), "2": wn.Converter(4, range="max", batches=2)})
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file))
    for other in (*others, fresh):
        assert range_of(other) is not range_of(model)
        for x in (second, third):
            other(x)
    for x in (second, third):
        expected = model(x)
    for other in (*others, fresh):
        assert_close(other.state_dict(), model.state_dict())
        assert torch.equal(other(third), expected)


def test_plain_checkpoints_load_both_ways() -> None:
    spec = {"0": wn.Converter(8, learned=True), "2": wn.ParametricNoise(0.3)}
    model = noisy(spec)
    wn.calibrate_ranges(model, batches(1))
    before = {name: value.clone() for name, value in wn.learned_strengths(model).items()}
    with pytest.warns(wn.LearnedStrengthWarning, match="keep the values they have"):
        model.load_state_dict(plain().state_dict())
    assert list(before) == [NAME, "2.activation_noise.input.strength"]
    assert_close(dict(wn.learned_strengths(model)), before)
    clean = {name: value for name, value in model.state_dict().items() if "activation_noise" not in name}
    assert clean.keys() == plain().state_dict().keys()
    plain().load_state_dict(clean)
    partly = {name: value for name, value in model.state_dict().items() if not name.endswith("batches")}
    with pytest.raises(RuntimeError, match=r"Missing key.*activation_noise\.input\.batches"):
        model.load_state_dict(partly)


def test_a_model_that_was_emptied_has_first_values_or_those_of_its_checkpoint() -> None:
    spec = {"0": wn.Converter(8, learned=True), "2": wn.Converter(8, range=3.0, learned=True)}
    model = noisy(spec)
    wn.calibrate_ranges(model, batches(1))
    state = model.state_dict()
    empty = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    assert range_of(empty).isnan().all()
    assert empty.get_parameter("2.activation_noise.input.range").item() == 3.0
    empty.load_state_dict(state)
    assert torch.equal(empty(batches(1)[0]), model(batches(1)[0]))
    on_meta = wn.add_activation_noise(plain().to("meta"), spec, at="input")
    on_meta.load_state_dict(state, assign=True)
    assert torch.equal(on_meta(batches(1)[0]), model(batches(1)[0]))


def test_removal_leaves_the_plain_model() -> None:
    model = noisy({"*": wn.Converter(8, learned=True)})
    wn.add_activation_noise(model, wn.Converter(8, range=2.0, learned=True))
    model(batches(1)[0])
    wn.remove_activation_noise(model, at="input")
    assert list(wn.learned_strengths(model)) == [
        "0.activation_noise.output.range",
        "2.activation_noise.output.range",
    ]
    wn.remove_activation_noise(model)
    assert list(model.state_dict()) == list(plain().state_dict())
    assert [list(one._modules) for one in model.modules()] == [list(one._modules) for one in plain().modules()]
    assert torch.equal(model(batches(1)[0]), plain()(batches(1)[0]))


def test_a_context_switches_a_converter_off_and_a_factor_does_not() -> None:
    model = noisy({"0": wn.Converter(3, range=1.0)})
    x = batches(1)[0]
    rounded = model(x)
    assert not torch.equal(rounded, plain()(x))
    with wn.no_noise(model):
        assert torch.equal(model(x), plain()(x))
    with wn.scale_noise(model, 0.0):
        assert torch.equal(model(x), rounded)
    with wn.hold_noise(model, seed=0):  # Nothing is drawn, so that any shape fits the draw.
        assert torch.equal(model(x), rounded)
        assert_close(model(x[:2]), rounded[:2])
    with wn.hold_noise(wn.add_activation_noise(model, 0.1), seed=0):
        model(x)
        with pytest.raises(wn.WeightNoiseError, match="hold_noise holds one draw of shape"):
            model(x[:2])


def test_autocast_and_half_precision() -> None:
    model = noisy({"0": wn.Converter(8, learned=True, batches=1), "2": wn.Converter(8, learned=True, batches=1)})
    x = batches(1)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        model(3 * x).float().sum().backward()
    assert range_of(model).dtype is torch.float32
    assert range_of(model).grad is not None
    half = model.bfloat16()
    assert half.get_buffer("0.activation_noise.input.batches").dtype is torch.int64
    assert half(x.bfloat16()).dtype is torch.bfloat16


def test_an_outside_range_takes_the_place_of_the_own() -> None:
    model = noisy({"0": wn.Converter(3, range=1.0, learned=True)})
    x = batches(1)[0]
    values = {**dict(model.named_parameters()), NAME: torch.full((1,), 2.0, requires_grad=True)}
    found = torch.func.functional_call(model, values, (x,))
    expected = noisy({"0": wn.Converter(3, range=2.0)})(x)
    assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), values[NAME])
    assert bool(gradient != 0) == bool((x.abs() > 2.0).any())


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("per", ["tensor", "output", -1])
def test_parametric_noise_learns_its_strength_on_activations(size: int, per: Any) -> None:
    model = wn.add_activation_noise(plain(size), {"0": wn.ParametricNoise(0.3, per=per)})
    (strength,) = wn.learned_strengths(model).values()
    assert strength.shape == ((1,) if per == "tensor" else (size,))
    x = batches(1, size)[0]
    clean = plain(size)[0](x)
    torch.manual_seed(4)
    found = model[0](x)
    torch.manual_seed(4)
    noise = torch.randn_like(clean) * clean.std(correction=0)
    assert_close(found, clean + 0.3 * noise)
    g = torch.randn_like(found)
    found.backward(g)
    by_element = (g * noise).detach()
    assert_close(strength.grad, by_element.sum().reshape(1) if per == "tensor" else by_element.sum(0))


def test_channels_of_convolutions() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 2)
    wn.add_activation_noise(conv, wn.Converter(8, range="max", per="input"), at="input")
    wn.add_activation_noise(conv, wn.Converter(8, range="max", per="output", learned=True))
    x = torch.randn(2, 3, 4, 4)
    conv(x)
    state = conv.state_dict()
    assert_close(state["activation_noise.input.range"], x.abs().amax((0, 2, 3)).reshape(3, 1, 1))
    assert state["activation_noise.output.range"].shape == (5, 1, 1)
    conv(x[0])  # Without a batch the channels are in front.
    assert conv(x[0]).shape == (5, 3, 3)


class Named(nn.Module):
    """A module that has the name for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.activation_noise = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"0": wn.LearnedGaussian()}, "it learns a strength for each weight"),
        ({"0": wn.Variational()}, "its divergence is that of weights"),
        ({"0": wn.ParametricNoise(per="element")}, "it learns a strength for each weight"),
        ({"0": wn.ParametricNoise(per=1)}, "counts from the front"),
        ({"1": wn.ParametricNoise(per=-1)}, "or the dimension from the end"),
        ({"1": wn.Converter(8, per="output")}, "per='output' is for outputs of Linear, Conv and Embedding"),
        ({"0": wn.Converter(8, per="input")}, "per='input' for inputs of Linear"),
        ({"0": wn.LearnedClip()}, "Use Converter, whose range comes from data"),
        ({nn.Sequential: wn.Converter(8)}, "calls or lists all of its submodules. Name one of its parts"),
        ({"0": wn.OutputNoise(0.1)}, "there is none. Add one first, with at='input'"),
        ({"1": wn.OutputNoise(0.1)}, "it is for the output of nn.Linear"),
        ({"0": [wn.ParametricNoise(), wn.Converter(8, range=1.0, learned=True, group="a")]}, "of a group"),
        (
            {"0": wn.Converter(8, group="a"), "2": wn.Converter(8, range="max", group="a")},
            "The layers of group 'a' have one range",
        ),
        (
            {"0": wn.Converter(8, group="a"), "2": wn.Converter(8, learned=True, group="a")},
            "Give them equal options",
        ),
        (
            {
                "0": wn.Converter(8, range=2.0, learned=True, group="a"),
                "2": wn.Converter(8, range=3.0, learned=True, group="a"),
            },
            "or two groups",
        ),
        ({"0": [wn.Converter(8, group="a"), wn.Converter(8)]}, "learns or measures something of its own besides"),
        ({"0": [wn.ParametricNoise(), wn.Converter(8, group="a")]}, "a range of a group"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_and_changes_nothing(spec: Any, text: str) -> None:
    model = plain()
    with pytest.raises(wn.UnsupportedActivationError) as caught:
        wn.add_activation_noise(model, spec)
    assert text in str(caught.value)
    assert list(model.state_dict()) == list(plain().state_dict())
    assert not any(module._forward_hooks for module in model.modules())


def test_other_refusals() -> None:
    with pytest.raises(wn.UnsupportedActivationError, match="has an attribute 'activation_noise' of its own"):
        wn.add_activation_noise(Named(), {"": wn.Converter(8)})
    with pytest.raises(wn.SpecError, match=r"is for activations, not for parameter '0\.weight'"):
        wn.add_weight_noise(plain(), wn.Converter(8, range=1.0))
    model = noisy({"0": wn.Converter(8)})
    replica: Any = model[0]._replicate_for_data_parallel()  # type: ignore[operator]
    with pytest.raises(wn.UnsupportedActivationError, match="which DataParallel throws away"):
        replica(batches(1)[0])
    model = wn.add_activation_noise(noisy({"0": wn.Converter(8, range=1.0)}), {"0": wn.OutputNoise(0.1)})
    wn.remove_activation_noise(model, at="input")
    with pytest.raises(wn.UnsupportedActivationError, match="counts in the range of the Converter at the input"):
        model(batches(1)[0])


def test_a_range_that_others_count_in_has_to_be_there() -> None:
    model = wn.add_activation_noise(noisy({"0": wn.Converter(8)}, at="input"), {"0": wn.OutputNoise(0.1)})
    (output,) = model[0]._forward_hooks.values()
    with (
        only_noise(model, output),
        pytest.raises(
            wn.UnsupportedActivationError, match="the input of module '0' takes its range from the data"
        ),
    ):
        model(batches(1)[0])


def test_a_layer_that_is_offloaded_is_refused() -> None:
    model = noisy({"0": wn.Converter(8, range=1.0, learned=True)})
    model[0].activation_noise.to("meta")  # type: ignore[operator]
    with pytest.raises(wn.UnsupportedActivationError, match="it is on the meta device"):
        model(batches(1)[0])


def test_a_prediction_that_puts_buffers_back_takes_its_batches_back() -> None:
    model = noisy({"0": wn.Converter(8, batches=2)})
    data = batches(2)
    model(data[0])
    before = copy.deepcopy(model.state_dict())
    wn.predict(model, data[1], draws=3)
    assert_close(model.state_dict(), before)
    model(data[1])
    both = torch.stack([wn.Converter(8).measured(x) for x in data])
    assert_close(range_of(model), both.mean().reshape(1))


def test_what_a_group_shares_goes_with_copies_and_checkpoints() -> None:
    law = wn.Converter(8, range=3.0, learned=True, group="adc")
    model = wn.add_activation_noise(plain(), law)
    names = ["0.activation_noise.output.range", "2.activation_noise.output.range"]
    state = {**model.state_dict(), names[0]: torch.full((1,), 2.0)}
    assert names[1] not in state
    empty = copy.deepcopy(model).to("meta")
    assigned = copy.deepcopy(empty)
    assigned.load_state_dict(state, assign=True)
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), empty.to_empty(device="cpu")]
    for other in others:
        other.load_state_dict(state)
    for other in (*others, assigned):
        first, second = (other.get_parameter(name) for name in names)
        assert first is second
        assert first.item() == 2.0
    assert model.get_parameter(names[0]).item() == 3.0


def test_what_is_learned_takes_no_weight_noise_and_is_in_no_plan() -> None:
    model = noisy({"0": wn.Converter(8, learned=True, per="input")})
    assert "activation_noise" not in str(wn.plan_weight_noise(model, 0.1, min_ndim=1))
    wn.add_weight_noise(model, 0.1, min_ndim=1)
    assert list(wn.noisy_parameters(model)) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_configurations_and_texts() -> None:
    law = wn.Converter(
        levels=254, range="quantile", quantile=0.99, learned=True, per="input", range_gradient="lsq"
    )
    assert wn.spec_from_config(wn.spec_to_config({"*": [law, wn.OutputNoise(0.1)]})) == {
        "*": [law, wn.OutputNoise(0.1)]
    }
    assert "(input): ActivationState(Converter(levels=254, range='quantile'" in str(noisy(law))
    assert wn.noisy_activations(noisy({"0": law})) == {("0", "input"): law}


@pytest.mark.compile
@COMPILES
def test_compiled_code_follows_ranges_without_compiling_again() -> None:
    model = noisy({"*": wn.Converter(4, learned=True, batches=2)})
    data = batches(4)
    wn.calibrate_ranges(model, data)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.SGD(wn.learned_strengths(model).values(), lr=0.1)
    for x in data:
        assert_close(compiled(x), model(x))
        compiled(x).square().sum().backward()
        optimizer.step()
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.compile
@COMPILES
def test_the_first_batches_of_compiled_code_set_ranges_too() -> None:
    model, eager = (noisy({"0": wn.Converter(4, learned=True, batches=3)}) for _ in range(2))
    compiled = torch.compile(model, backend="aot_eager")
    seen = []
    for x in batches(6):
        assert_close(compiled(x), eager(x))
        assert_close(dict(model.named_buffers()), dict(eager.named_buffers()))
        seen.append(counters["stats"]["unique_graphs"])
    assert seen[0] == seen[2]  # Ranges that move compile nothing.
    assert seen[3] == seen[5]


@pytest.mark.compile
@COMPILES
def test_compiled_code_in_a_checkpoint_takes_ranges_that_are_set() -> None:
    model = noisy({"0": wn.Converter(3, learned=True)})
    compiled = torch.compile(model, backend="aot_eager")
    (x,) = batches(1)
    with pytest.raises(
        wn.UnsupportedActivationError, match="would set its range in compiled code in a checkpoint"
    ):
        checkpoint(compiled, x, use_reentrant=False)
    torch.compiler.reset()
    wn.calibrate_ranges(model, [x])
    gradients = []
    for call in (lambda: checkpoint(compiled, x, use_reentrant=False), lambda: model(x)):
        model.zero_grad()
        call().square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert_close(gradients[0], gradients[1])


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("learned", [False, True])
def test_a_functional_call_sets_the_ranges_that_it_is_given_alone(learned: bool, size: int) -> None:
    model = noisy({"0": wn.Converter(8, range="max", batches=1, learned=learned)}, size)
    first = _state(model)
    torch.func.functional_call(model, first, (torch.full((2, size), 3.0),))
    assert first[NAME].item() == 3.0
    model(torch.full((2, size), 5.0))
    assert range_of(model).item() == 5.0
    second = _state(noisy({"0": wn.Converter(8, range="max", batches=1, learned=learned)}, size))
    torch.func.functional_call(model, second, (torch.full((2, size), 7.0),))
    assert second[NAME].item() == 7.0
    model(torch.full((2, size), 9.0))
    assert range_of(model).item() == 5.0


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("transformation", ["vmap", "grad"])
def test_a_range_that_would_be_set_in_a_transformation_is_refused(transformation: str, learned: bool) -> None:
    model = noisy({"0": wn.Converter(8, range="max", batches=2, learned=learned)})
    parameters, x = {"2.bias": torch.zeros(3)}, torch.ones(2, 8)

    def total(parameters: dict[str, Tensor]) -> Tensor:
        y: Tensor = torch.func.functional_call(model, parameters, (x,))
        return y.sum()

    calls: dict[str, Any] = {
        "vmap": lambda: torch.vmap(model)(x),
        "grad": lambda: torch.func.grad(total)(parameters),
    }
    with pytest.raises(
        wn.UnsupportedActivationError, match=r"input of module '0' .* transformation of torch.func"
    ):
        calls[transformation]()
    wn.calibrate_ranges(model, [x])
    calls[transformation]()
