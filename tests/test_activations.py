"""Noise on what modules take in and put out: values, gradients, contexts, copies, compilers, removal."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.utils.rnn import pack_sequence
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.cases import CASES, torch_before

X = torch.linspace(-1, 1, 12).reshape(4, 3)
COMPILES = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def noisy(spec: Any = 0.1, **options: Any) -> nn.Sequential:
    return wn.add_activation_noise(plain(), spec, **options)


def hooks(model: nn.Module) -> list[dict[str, Any]]:
    return [{name: dict(value) for name, value in vars(m).items() if "hooks" in name} for m in model.modules()]


def test_a_law_covers_every_linear_and_conv_and_each_output_is_moved_by_its_draw() -> None:
    model = noisy(0.1)
    assert list(wn.noisy_activations(model)) == [("0", "output"), ("2", "output")]
    torch.manual_seed(3)
    found = model(X)
    torch.manual_seed(3)
    hidden = model[0].forward(X)
    hidden = torch.tanh(hidden + 0.1 * torch.randn(4, 5))
    expected = model[2].forward(hidden)
    assert_close(found, expected + 0.1 * torch.randn(4, 2))
    assert not torch.equal(model(X), found)


def test_noise_at_the_input_is_that_of_the_module_before() -> None:
    model = noisy({"2": 0.1}, at="input")
    torch.manual_seed(3)
    found = model(X)
    torch.manual_seed(3)
    hidden = torch.tanh(model[0](X))
    assert_close(found, model[2].forward(hidden + 0.1 * torch.randn(4, 5)))
    both = wn.add_activation_noise(model, {"0": wn.Uniform(0.2)})
    assert list(wn.noisy_activations(both).items()) == [
        (("0", "output"), wn.Uniform(0.2)),
        (("2", "input"), wn.Gaussian(0.1)),
    ]


LAWS: list[Any] = [
    wn.Gaussian(0.2),
    wn.Gaussian(0.2, relative_to="std"),
    wn.Gaussian(0.2, relative_to="rms", per=1),
    wn.Gaussian(0.2, relative_to="absmax", gradient="exact"),
    wn.Gaussian(0.2, relative_to="value", gradient="exact"),
    wn.Uniform(0.2),
    wn.LogNormal(0.3),
    wn.DropConnect(0.3),
    wn.SaltAndPepper(0.3),
    wn.SaltAndPepper(0.3, levels=(-1.0, 1.0), gradient="straight-through"),
    wn.CurrentNoise(1.0),
    wn.CurrentNoise(1.0, converter="external"),
    [wn.Clip(2.0), wn.Quantize(4), wn.Gaussian(0.1)],
]


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_contexts_cover_every_law(law: Any) -> None:
    model, clean = noisy(law), plain()(X)
    with wn.no_noise(model):
        assert torch.equal(model(X), clean)
    state = torch.get_rng_state()
    with wn.hold_noise(model, seed=1):
        held = model(X)
        assert torch.equal(model(X), held)
    with wn.hold_noise(model, seed=1):
        assert torch.equal(model(X), held)
    assert torch.equal(torch.get_rng_state(), state)
    with wn.hold_noise(model, seed=2):
        assert not torch.equal(model(X), held)
    with wn.hold_noise(model):
        assert torch.equal(model(X), model(X))
    assert not torch.equal(model(X), model(X))


@pytest.mark.parametrize("law", [wn.Gaussian(0.2), wn.Uniform(0.2), wn.CurrentNoise(1.0)], ids=repr)
def test_scaling_and_mirroring_are_exact(law: Any) -> None:
    model = noisy({"2": law}).double()
    x = X.double()
    clean = plain().double()(x)
    with wn.hold_noise(model, seed=0):
        once = model(x) - clean
        with wn.scale_noise(model, 2.0):
            assert_close(model(x) - clean, 2 * once)
    with wn.hold_noise(model, seed=0, sign=-1):
        assert_close(model(x) - clean, -once)
    schedule = wn.NoiseScheduler(model, wn.linear_ramp(2, first=1.0, last=0.0))
    schedule.step()
    with wn.hold_noise(model, seed=0):
        assert_close(model(x) - clean, once / 2)


def test_mirrored_salt_is_pepper() -> None:
    law = wn.SaltAndPepper(0.4, levels=(0.0, 1.0))
    image = torch.full((50, 40), 0.5)
    draw = law.draw(image)
    assert_close(law.apply(image, draw, -1.0), 1 - law.apply(image, draw, 1.0))
    values, counts = law.apply(image, draw, 1.0).unique(return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    # 4 s.e. of a rate of 0.2 over 2000 values are 0.036.
    assert counts[0].item() / 2000 == pytest.approx(0.2, abs=0.036)
    assert counts[2].item() / 2000 == pytest.approx(0.2, abs=0.036)
    own = wn.SaltAndPepper(1.0)
    assert set(own.apply(X, own.draw(X), 1.0).flatten().tolist()) == {-1.0, 1.0}


def test_weights_and_activations_share_the_contexts() -> None:
    model, clean = wn.add_weight_noise(noisy(0.1), 0.1), plain()(X)
    with wn.no_noise(model):
        assert torch.equal(model(X), clean)
    with wn.hold_noise(model, seed=0):
        both = model(X)
        assert torch.equal(model(X), both)
    wn.remove_weight_noise(model)
    with wn.hold_noise(model, seed=0):
        assert not torch.equal(model(X), both)
    wn.remove_activation_noise(model)
    assert torch.equal(model(X), clean)
    with pytest.raises(wn.NotNoisyError), wn.hold_noise(model):
        pass


def test_training_noise_follows_the_mode_of_the_module_and_can_be_forced() -> None:
    model, clean = noisy(0.1, when="training"), plain()(X)
    assert not torch.equal(model(X), clean)
    model.eval()
    assert torch.equal(model(X), clean)
    with wn.force_noise(model):
        assert not torch.equal(model(X), clean)


def test_another_shape_under_a_hold_is_an_error() -> None:
    model = noisy({"0": 0.1})
    with wn.hold_noise(model, seed=0) as held:
        model(X)
        with pytest.raises(
            wn.WeightNoiseError, match=r"of shape \(4, 5\) for the output of module '0', which now has"
        ):
            model(X[:3])
        held.reset()
        model(X[:3])
    model(X[:2])


def test_a_module_called_twice_draws_twice_and_holds_one_draw() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x), self.layer(x)

    model = wn.add_activation_noise(Twice(), 0.1)
    first, second = model(X)
    assert not torch.equal(first, second)
    with wn.hold_noise(model, seed=0):
        first, second = model(X)
        assert torch.equal(first, second)


class Pair(NamedTuple):
    """A named output."""

    value: Tensor
    extra: Tensor


class Gives(nn.Module):
    """Puts out what a function makes of its input."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


@pytest.mark.parametrize(
    ("make", "get"),
    [
        (lambda x: (x, x), lambda y: (y[0], y[1])),
        (lambda x: [x, x], lambda y: (y[0], y[1])),
        (lambda x: Pair(x, x), lambda y: (y.value, y.extra)),
        (lambda x: {"value": x, "count": torch.ones(2, dtype=torch.int64)}, lambda y: (y["value"], X)),
        (lambda x: OrderedDict(value=x), lambda y: (y["value"], X)),
        (lambda x: ((x, x), x), lambda y: (y[0][0], y[0][1])),
    ],
)
def test_the_first_tensor_of_a_tuple_and_the_only_one_of_a_mapping_carry_the_noise(make: Any, get: Any) -> None:
    model = wn.add_activation_noise(nn.Sequential(Gives(make)), {"0": 0.1})
    output = model(X)
    assert type(output) is type(make(X))
    noise, other = get(output)
    assert not torch.equal(noise, X)
    assert torch.equal(other, X)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda x: None, "got a NoneType"),
        (lambda x: (), "got a tuple"),
        (lambda x: (3, x), "got a int"),
        (lambda x: {"a": x, "b": x}, "got 'a', 'b'"),
        (lambda x: {"a": 3}, "got none"),
        (lambda x: x.long(), "got torch.int64"),
    ],
)
def test_anything_else_is_an_error_that_says_so(make: Any, text: str) -> None:
    model = wn.add_activation_noise(nn.Sequential(Gives(make)), {"0": 0.1})
    with pytest.raises(wn.UnsupportedActivationError, match=f"Noise on the output of module '0' needs .*{text}"):
        model(X)


def test_keyword_inputs() -> None:
    class Named(nn.Module):
        def forward(self, *, x: Tensor, tokens: Tensor, other: Tensor | None = None) -> Tensor:
            return x

    model, tokens = (
        wn.add_activation_noise(nn.ModuleDict({"a": Named()}), {"a": 0.1}, at="input"),
        torch.ones(2).long(),
    )
    assert not torch.equal(model["a"](x=X, tokens=tokens), X)
    with pytest.raises(
        wn.UnsupportedActivationError, match="the input of module 'a' needs a single floating-point"
    ):
        model["a"](x=X, tokens=tokens, other=X)


def test_recurrent_and_packed() -> None:
    model = wn.add_activation_noise(nn.LSTM(3, 4), {nn.LSTM: 0.1})
    packed = pack_sequence([torch.ones(3, 3), torch.ones(2, 3)])
    with wn.no_noise(model):
        clean, (hidden, _) = model(packed)
    output, (noisy_hidden, _) = model(packed)
    assert not torch.equal(output.data, clean.data)
    assert torch.equal(output.batch_sizes, clean.batch_sizes)
    assert torch.equal(noisy_hidden, hidden)
    inputs = wn.add_activation_noise(nn.GRU(3, 4), {nn.GRU: 0.1}, at="input")
    assert not torch.equal(inputs(packed)[0].data, inputs(packed)[0].data)


@pytest.mark.parametrize("training", [True, False])
def test_transformers_in_both_modes(training: bool) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).train(training)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    wn.add_activation_noise(model, 0.1)
    assert ("layers.0.self_attn.out_proj", "output") not in wn.noisy_activations(model)
    x = torch.randn(2, 5, 4)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert not torch.equal(model(x), model(x))
    with pytest.raises(wn.UnsupportedActivationError, match=r"nn.MultiheadAttention never calls it"):
        wn.add_activation_noise(model, {"layers.0.self_attn.out_proj": 0.1}, at="input")


@pytest.mark.parametrize(
    "case", ["mlp", "conv", "lstm", "attention", "transformer", "shared", "weight_norm", "bfloat16"]
)
def test_added_and_removed_without_a_trace(case: str) -> None:
    model, x = CASES[case].model(), CASES[case].batch()
    model.register_forward_hook(lambda *args: None)
    before, state = hooks(model), copy.deepcopy(model.state_dict())
    clean = model(x)
    called = [m for name, m in model.named_modules() if not name.endswith("out_proj")]
    kinds = [kind for kind in _COVERED if any(isinstance(m, kind) for m in called)]
    wn.add_activation_noise(model, dict.fromkeys(kinds, 0.1))
    assert list(model.state_dict()) == list(state)
    torch.manual_seed(0)
    assert not torch.equal(model(x), clean)
    wn.remove_activation_noise(model)
    assert hooks(model) == before
    with torch.no_grad():
        assert wn.noisy_activations(model) == {}


_COVERED = (nn.Linear, nn.Conv2d, nn.LSTM, nn.Tanh, nn.MultiheadAttention)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_noise_of_their_own(way: Any) -> None:
    model = wn.add_activation_noise(noisy(0.1), {"0": wn.SaltAndPepper(0.1)}, at="input")
    other = way(model)
    assert wn.noisy_activations(other) == wn.noisy_activations(model)
    with wn.no_noise(model):
        assert not torch.equal(other(X), other(X))
    with wn.hold_noise(model, seed=0), wn.hold_noise(other, seed=0):
        assert torch.equal(model(X), other(X))
    wn.remove_activation_noise(other)
    assert torch.equal(other(X), other(X))
    assert not torch.equal(model(X), model(X))
    assert other[0]._forward_hooks_with_kwargs == {}
    assert other[0]._forward_pre_hooks_with_kwargs == {}


@pytest.mark.parametrize("held", [None, 0, "unseeded"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_recomputes_the_same_draw(reentrant: bool, held: Any) -> None:
    model = nn.Sequential(*noisy([wn.Gaussian(0.3), wn.SaltAndPepper(0.2)]), nn.Dropout(0.5))
    x = X.clone().requires_grad_()

    def gradients(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        torch.manual_seed(5)
        context = (
            wn.hold_noise(model, seed=held if held == 0 else None)
            if held is not None
            else wn.scale_noise(model, 1)
        )
        with context:
            run(x).square().sum().backward()
        found = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        return found

    expected = gradients(model)
    again = gradients(lambda x: checkpoint(model, x, use_reentrant=reentrant))
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_gradients_are_those_at_the_noisy_activations() -> None:
    model = noisy({"0": wn.Gaussian(0.3)}).double()
    x = X.double()
    with wn.hold_noise(model, seed=0):
        moved = model[0](x)
        shift = (moved - model[0].forward(x)).detach()
        model(x).square().sum().backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model[2].forward(torch.tanh(model[0].forward(x) + shift)).square().sum().backward()
    for mine, parameter in zip(found, model.parameters(), strict=True):
        assert_close(mine, parameter.grad)


@pytest.mark.compile
@COMPILES
@pytest.mark.parametrize("law", [*LAWS[:12]], ids=repr)
@pytest.mark.parametrize("at", ["output", "input"])
def test_compiled_in_one_graph(law: Any, at: Any) -> None:
    if isinstance(law, wn.CurrentNoise) and at == "input":
        pytest.skip("current noise is on outputs alone")
    if isinstance(law, wn.CurrentNoise) and torch_before("2.7"):
        pytest.skip("torch before 2.7: its Dynamo breaks the graph at contexts made from generators")
    model, clean = noisy(law, at=at), plain()(X)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert not torch.equal(compiled(X), compiled(X))
    with wn.no_noise(model):
        assert_close(compiled(X), clean)
    with wn.hold_noise(model, seed=0):
        expected = model(X)  # The first call inside a hold draws, which a graph cannot do.
        assert_close(compiled(X), expected)
    assert counters["stats"]["unique_graphs"] <= 3


@pytest.mark.compile
@COMPILES
def test_compiled_before_noise_was_added_and_after_it_was_removed() -> None:
    model = plain()
    clean = model(X)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_close(compiled(X), clean)
    wn.add_activation_noise(model, 0.1)
    assert not torch.equal(compiled(X), compiled(X))
    wn.remove_activation_noise(model)
    assert_close(compiled(X), clean)


@pytest.mark.compile
@COMPILES
def test_a_schedule_recompiles_nothing_and_a_hold_breaks_an_open_graph() -> None:
    model = noisy(0.1)
    schedule = wn.NoiseScheduler(model, wn.linear_ramp(10, first=0.1))
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(5):
        compiled(X)
        schedule.step()
    assert counters["stats"]["unique_graphs"] == 1
    with wn.hold_noise(model, seed=0):
        first = compiled(X)
        assert_close(compiled(X), first)
        assert_close(model(X), first)


def test_export_with_noise_on_is_an_error() -> None:
    model = noisy(0.1)
    with pytest.raises(wn.ExportError, match=r"Activation noise is on for '0'.*remove_activation_noise"):
        torch.export.export(model, (X,), strict=False)
    with wn.no_noise(model):
        exported = torch.export.export(model, (X,), strict=False)
    assert torch.equal(exported.module()(X), plain()(X))


@pytest.mark.parametrize(
    ("spec", "kind", "text"),
    [
        ({"1.*": 0.1}, wn.NoMatchError, "Pattern '1.*' matches no module. Closest names: "),
        (
            {nn.LSTM: 0.1},
            wn.NoMatchError,
            "Classes in the model: Linear, Sequential, Tanh.",
        ),
        ({"*": 0.1, "0": 0.2}, wn.NoMatchError, "Pattern '0' can never apply: '*' comes first and wins it."),
        (
            {"1*": 0.1},
            wn.NoMatchError,
            "Pattern '1*' covers no Linear or Conv module that is called, only '1'.",
        ),
        ({}, wn.SpecError, "The mapping is empty"),
        (None, wn.SpecError, "The spec is None"),
        ("0.1", wn.SpecError, "is no law"),
        ({3: 0.1}, wn.SpecError, "Key 3 must be a pattern of names (str) or a module class."),
        ({"*": None}, wn.NoMatchError, "The spec puts noise on no module."),
        (wn.LearnedGaussian(), wn.UnsupportedActivationError, "it learns a strength for each weight"),
        (wn.StuckAt(0.1), wn.UnsupportedActivationError, "Use chip=None"),
        ([wn.Protect(wn.BitFlip(0.1, chip=1), 0.1)], wn.UnsupportedActivationError, "Use chip=None"),
        (wn.NEFTune(), wn.UnsupportedActivationError, "it is for the output of nn.Embedding"),
        (
            {nn.Tanh: wn.CurrentNoise(1.0)},
            wn.UnsupportedActivationError,
            "it is for the output of nn.Linear, nn.Conv1d",
        ),
    ],
    ids=str,
)
def test_specs_that_cannot_be_are_errors_and_change_nothing(spec: Any, kind: Any, text: str) -> None:
    model = plain()
    before = hooks(model)
    calls: list[Callable[..., Any]] = [wn.add_activation_noise, wn.plan_activation_noise]
    for call in calls:
        with pytest.raises(kind) as caught:
            call(model, spec)
        assert text in str(caught.value)
        assert hooks(model) == before


def test_all_problems_come_at_once() -> None:
    model = noisy({"0": 0.1})
    with pytest.raises(wn.WeightNoiseError) as caught:
        wn.add_activation_noise(model, {"0": 0.1, "zz": 0.1, nn.Tanh: wn.NEFTune()})
    assert len(caught.value.problems) == 3
    with pytest.raises(wn.AlreadyNoisyError, match="The output of module '0' already has noise"):
        wn.add_activation_noise(model, 0.1)


def test_callables_none_and_the_model_itself() -> None:
    model = wn.add_activation_noise(plain(), lambda name, module: 0.1 if isinstance(module, nn.Tanh) else None)
    assert list(wn.noisy_activations(model)) == [("1", "output")]
    model = wn.add_activation_noise(plain(), {"0": None, "*": 0.1})
    assert list(wn.noisy_activations(model)) == [("2", "output")]
    model = wn.add_activation_noise(plain(), {nn.Sequential: 0.1})
    assert list(wn.noisy_activations(model)) == [("", "output")]
    assert not torch.equal(model(X), model(X))


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module"):
        wn.add_activation_noise(3, 0.1)  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"add_activation_noise\(at=...\) must be one of 'output', 'input'"):
        wn.add_activation_noise(plain(), 0.1, at="inside")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"add_activation_noise\(when=...\)"):
        wn.add_activation_noise(plain(), 0.1, when="never")  # type: ignore[arg-type]
    with pytest.raises(wn.NotNoisyError, match="carries no activation noise"):
        wn.remove_activation_noise(plain())
    with pytest.raises(wn.SpecError, match=r"CurrentNoise\(current=1.0\)\] is for activations, not for parameter"):
        wn.add_weight_noise(plain(), [wn.Clip(), wn.CurrentNoise(1.0)])
    with pytest.raises(wn.UnsupportedActivationError, match="takes in whole numbers"):
        wn.add_activation_noise(nn.Sequential(nn.Embedding(3, 2)), {nn.Embedding: 0.1}, at="input")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("SaltAndPepper(1.5)", r"SaltAndPepper\(p=...\) must be in \[0, 1\]"),
        ("SaltAndPepper(0.1, levels=(1.0, 0.0))", r"must be \(low, high\) in this order"),
        ("SaltAndPepper(0.1, gradient='no')", "gradient=...\\) must be one of"),
        ("NEFTune(-1)", r"NEFTune\(alpha=...\)"),
        ("NEFTune(mask=3)", r"NEFTune\(mask=...\) must be a function"),
        ("CurrentNoise(0)", "must be positive"),
        ("CurrentNoise(1, converter='none')", "must be one of 'merged', 'external'"),
    ],
)
def test_options_are_checked_when_a_law_is_made(call: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        eval(call, vars(wn).copy())


@pytest.mark.parametrize("at", ["input", "output"])
def test_one_side_comes_off_alone(at: Any) -> None:
    other: Any = "output" if at == "input" else "input"
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    for side in ("input", "output"):
        wn.add_activation_noise(model, 0.1, at=side)
    assert wn.remove_activation_noise(model, at=at) is model
    assert set(wn.noisy_activations(model)) == {("0", other), ("1", other)}
    with pytest.raises(wn.NotNoisyError, match=f"carries no activation noise at any {at}"):
        wn.remove_activation_noise(model, at=at)
    wn.remove_activation_noise(model)
    assert not wn.noisy_activations(model)
    with pytest.raises(wn.OptionError, match="at"):
        wn.remove_activation_noise(model, at="middle")  # type: ignore[arg-type]
