"""Recording activations: right values and gradients, whatever the network does with them; no trace after."""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.cases import CASES, SharedModule, single_loss
from weightnoise._losses import gradient_penalty
from weightnoise._recording import record_activations

HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks")


def state(model: nn.Module) -> list[tuple[str, set[str], list[dict[int, Any]]]]:
    """What hooks could leave on any module of the model."""
    return [
        (name, set(vars(module)), [dict(vars(module)[hooks]) for hooks in HOOKS])
        for name, module in model.named_modules()
    ]


def first_tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else first_tensor(output[0])


def naive_gradients(model: nn.Module, x: Tensor, name: str) -> list[Tensor]:
    """dL/da of each call of a module, from a zero that is added to its output."""
    deltas: list[Tensor] = []

    def add_zero(module: nn.Module, args: Any, output: Any) -> Any:
        delta = torch.zeros_like(first_tensor(output)).requires_grad_()
        deltas.append(delta)
        moved = first_tensor(output) + delta
        return moved if isinstance(output, Tensor) else (moved, *output[1:])

    handle = model.get_submodule(name).register_forward_hook(add_zero)
    loss = single_loss(model, x)
    handle.remove()
    return list(torch.autograd.grad(loss, deltas))


def every(case: str) -> str:
    """All submodules; the model itself where it has none."""
    return "*" if any(CASES[case].model().children()) else ""


# What is recorded


@pytest.mark.parametrize("noise", [None, 0.2])
@pytest.mark.parametrize("case", CASES)
def test_the_network_computes_the_same_and_is_left_as_it_was(case: str, noise: float | None) -> None:
    model, x = CASES[case].model(), CASES[case].batch()
    if noise is not None:
        wn.add_weight_noise(model, noise)
    found, before = [], state(model)
    for context in (nullcontext(), record_activations(model, every(case))):
        torch.manual_seed(5)
        model.zero_grad()
        with context:
            loss = single_loss(model, x)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert state(model) == before


@pytest.mark.parametrize("noise", [None, 0.2])
@pytest.mark.parametrize("case", [name for name in CASES if name not in ("bfloat16", "weight_norm", "shared")])
def test_gradients_are_those_of_a_zero_added_to_the_output(case: str, noise: float | None) -> None:
    model, x = CASES[case].model().double(), CASES[case].batch()
    x = x.double() if x.is_floating_point() else x
    if noise is not None:
        wn.add_weight_noise(model, noise)
    torch.manual_seed(5)
    with record_activations(model, every(case)) as recorded:
        loss = single_loss(model, x)
    for name, calls in recorded.items():
        if name.endswith("out_proj"):  # MultiheadAttention does not call it.
            continue
        torch.manual_seed(5)
        expected = naive_gradients(model, x, name)
        found = torch.autograd.grad(loss, calls, retain_graph=True)
        assert len(found) == len(expected) == 1
        assert_close(found[0], expected[0], rtol=1e-10, atol=1e-12)


def networks(inplace: bool) -> Iterator[nn.Module]:
    """Pairs that differ in whether activations are changed in place."""

    class Residual(nn.Module):
        """Adds to its own input, which the recorded module passes through or looks at."""

        def __init__(self, branch: nn.Module) -> None:
            super().__init__()
            self.stem = nn.Linear(4, 4)
            self.branch = branch
            self.head = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = torch.tanh(self.branch(x).reshape(x.shape))
            if inplace:
                x += self.head(y)
                return x.mul_(2)
            return 2 * (x + self.head(y))

    relu, silu = nn.ReLU(inplace=inplace), nn.SiLU(inplace=inplace)
    yield nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), nn.Flatten(), silu, nn.Linear(4, 4))
    yield nn.Sequential(nn.Linear(4, 4), nn.Identity(), relu, nn.Linear(4, 4))
    yield nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), relu, nn.Linear(4, 4), relu)
    yield Residual(nn.Identity())
    yield Residual(nn.Dropout(0.5).eval())
    yield Residual(nn.Unflatten(1, (2, 2)))


def build(index: int, inplace: bool) -> nn.Module:
    torch.manual_seed(0)
    return list(networks(inplace))[index].double()


@pytest.mark.parametrize("index", range(6))
def test_activations_changed_in_place_are_recorded_as_they_were(index: int) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    names = [name for name, _ in build(index, inplace=False).named_modules() if name]
    for which in (*names, "*"):
        found = []
        for inplace in (False, True):
            model = build(index, inplace)
            with record_activations(model, which) as recorded:
                loss = single_loss(model, x)
            penalty = gradient_penalty(loss, recorded)
            (loss + penalty).backward()
            values = [activation.detach() for calls in recorded.values() for activation in calls]
            gradients = [
                activation.grad for calls in recorded.values() for activation in calls if activation.is_leaf
            ]
            assert not gradients
            found.append([loss.detach(), penalty.detach(), *values, *(p.grad for p in model.parameters())])
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other), which


def test_a_module_that_returns_its_input_has_a_gradient_of_its_own() -> None:
    model, x = build(3, inplace=False), torch.randn(3, 4, dtype=torch.float64)
    with record_activations(model, ["stem", "branch"]) as recorded:
        loss = single_loss(model, x)
    stem, branch = torch.autograd.grad(loss, [recorded["stem"][0], recorded["branch"][0]])
    assert torch.equal(recorded["stem"][0], recorded["branch"][0])
    assert_close(branch, naive_gradients(model, x, "branch")[0])
    assert not torch.allclose(stem, branch)  # The stem's output also goes around the branch.


def test_each_call_is_recorded_in_order() -> None:
    model, x = SharedModule().double(), torch.randn(3, 4, dtype=torch.float64)
    with record_activations(model, nn.Linear) as recorded:
        loss = single_loss(model, x)
    assert list(recorded) == ["first"]
    first, second = recorded["first"]
    assert_close(first, nn.functional.linear(x, model.first.weight, model.first.bias))
    assert_close(second, nn.functional.linear(first.tanh(), model.first.weight, model.first.bias))
    found = torch.autograd.grad(loss, recorded["first"])
    for one, other in zip(found, naive_gradients(model, x, "first"), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize(("which", "name"), [("second", "second"), ("*", "first"), (["second", "first"], "first")])
def test_a_module_with_two_names_is_listed_under_the_first_that_matches(which: Any, name: str) -> None:
    model = SharedModule()
    with record_activations(model, which) as recorded:
        model(torch.randn(3, 4))
    assert {key: len(calls) for key, calls in recorded.items()} == {name: 2}


def test_forwards_add_up_and_the_record_outlives_the_context() -> None:
    model = CASES["mlp"].model()
    batches = torch.randn(4, 5, 4)
    with torch.no_grad(), record_activations(model, "0") as recorded:
        assert recorded == {"0": []}
        for batch in batches:
            model(batch)
    model(batches[0])
    assert_close(torch.cat(recorded["0"]), model[0](batches.flatten(0, 1)))
    assert not any(activation.requires_grad for activation in recorded["0"])


def test_without_gradients_values_are_recorded_and_a_penalty_says_why_not() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), torch.randn(3, 4)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, record_activations(model, "0") as recorded:
            model(x)
        assert torch.equal(recorded["0"][0], model[0](x))
        with pytest.raises(
            wn.WeightNoiseError, match=r"^Tensor '0'\[0\] needs no gradient: .* torch\.no_grad\(\)"
        ):
            gradient_penalty(model(x).sum(), recorded)


def test_outputs_that_need_no_gradient_become_leaves_that_do() -> None:
    model, x = (
        nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double(),
        torch.ones(5, 2, 2),
    )
    x = x.double()
    model[1].requires_grad_(False)
    with record_activations(model, ["0", "1"]) as recorded:
        loss = single_loss(model, x)
    for name, calls in recorded.items():
        (found,) = torch.autograd.grad(loss, calls, retain_graph=True)
        assert_close(found, naive_gradients(model, x, name)[0])
    gradient_penalty(loss, recorded).backward()
    assert model[3].weight.grad is not None
    assert model[1].weight.grad is None
    assert not x.requires_grad


def test_whole_numbers_are_recorded_without_a_gradient() -> None:
    class Argmax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(dim=1)

    model, x = nn.Sequential(nn.Linear(4, 3), Argmax(), nn.Embedding(3, 2)), torch.randn(5, 4)
    with record_activations(model, Argmax) as recorded:
        loss = single_loss(model, x)
    assert recorded["1"][0].dtype == torch.int64
    with pytest.raises(wn.WeightNoiseError, match=r"^Tensor '1'\[0\] needs no gradient: .*whole numbers"):
        gradient_penalty(loss, recorded)


# Outputs that are more than a tensor

Pair = namedtuple("Pair", ["value", "rest"])


class Returns(nn.Module):
    """A layer whose output is wrapped."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.linear(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y, None),
        lambda y: [y, 1],
        lambda y: ((y, 2), 3),
        lambda y: Pair(y, "rest"),
        lambda y: y.max(dim=1),
    ],
)
def test_the_first_tensor_of_a_sequence_is_recorded_and_its_kind_is_kept(wrap: Callable[[Tensor], Any]) -> None:
    model, x = Returns(wrap), torch.randn(3, 4)
    expected = model(x)
    with record_activations(model, "") as recorded:
        output = model(x)
    assert type(output) is type(expected)
    assert len(output) == len(expected)
    assert torch.equal(recorded[""][0], first_tensor(expected))
    assert repr(output[1]) == repr(expected[1])
    gradient_penalty(first_tensor(output).square().sum(), recorded).backward()
    assert model.linear.weight.grad is not None


def test_packed_sequences() -> None:
    model = nn.LSTM(3, 4)
    packed = pack_sequence([torch.randn(3, 3), torch.randn(2, 3)])
    with record_activations(model, nn.LSTM) as recorded:
        output, _ = model(packed)
    assert isinstance(output, PackedSequence)
    assert torch.equal(output.batch_sizes, packed.batch_sizes)
    (found,) = torch.autograd.grad(output.data.square().sum(), recorded[""])
    assert_close(found, 2 * output.data)


@pytest.mark.parametrize(("wrap", "kind"), [(lambda y: {"y": y}, "dict"), (lambda y: (), "tuple"), (str, "str")])
def test_other_outputs_are_an_error_that_leaves_no_hook(wrap: Callable[[Tensor], Any], kind: str) -> None:
    model = nn.ModuleDict({"layer": Returns(wrap)})
    before = state(model)
    with pytest.raises(wn.WeightNoiseError) as caught, record_activations(model, "layer"):
        model["layer"](torch.randn(3, 4))
    assert str(caught.value) == (
        f"record_activations: module 'layer' returns {kind}, where a tensor, or a tuple or list whose first item "
        "is one, is needed. Record one of its submodules."
    )
    assert state(model) == before


def test_modules_that_are_never_called_have_an_empty_list() -> None:
    model, x = CASES["attention"].model(), CASES["attention"].batch()
    with record_activations(model, "*.out_proj") as recorded:
        loss = single_loss(model, x)
    assert recorded == {"attention.out_proj": []}
    with pytest.raises(wn.WeightNoiseError) as caught:
        gradient_penalty(loss, recorded)
    assert str(caught.value) == (
        "Tensor 'attention.out_proj' is an empty list: the module has not been called since recording began. A "
        "module whose weights another one uses is never called (out_proj of MultiheadAttention), and a model that "
        "torch.compile had compiled before does not see new hooks. Record another module, or leave it out."
    )


def test_the_fast_path_of_the_transformer_layer_is_switched_off() -> None:
    model, x = CASES["transformer"].model().eval(), CASES["transformer"].batch()
    with torch.no_grad(), record_activations(model, "linear1") as recorded:
        output = model(x)
    assert len(recorded["linear1"]) == 1
    assert_close(output, model(x))


# Contexts


def test_nested_contexts_record_the_same() -> None:
    model, x = CASES["float64"].model(), CASES["float64"].batch()
    with record_activations(model, "*") as outer:
        model(x)
        with record_activations(model, "0") as inner:
            loss = single_loss(model, x)
        model(x)
    assert [len(calls) for calls in outer.values()] == [3, 3, 3]
    assert [len(calls) for calls in inner.values()] == [1]
    assert torch.equal(inner["0"][0], outer["0"][1])
    one, other = torch.autograd.grad(loss, [inner["0"][0], outer["0"][1]])
    assert torch.equal(one, other)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_errors_inside_leave_no_hook(error: type[BaseException]) -> None:
    model = CASES["mlp"].model()
    before = state(model)

    def fails(module: nn.Module, args: Any, output: Any) -> None:
        raise error

    handle = model[2].register_forward_hook(fails)
    with pytest.raises(error), record_activations(model, "*"):
        model(torch.randn(2, 4))
    handle.remove()
    assert state(model) == before


def test_a_module_that_takes_no_hook_leaves_none_on_the_others() -> None:
    class Refuses(nn.Linear):
        def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no hooks here")

    model = nn.Sequential(nn.Linear(2, 2), Refuses(2, 2))
    before = state(model)
    with pytest.raises(RuntimeError, match="no hooks here"), record_activations(model, "*"):
        pass
    assert state(model) == before


def test_the_users_hooks_stay_and_are_seen() -> None:
    model, x = CASES["mlp"].model(), torch.randn(2, 4)
    handle = model[0].register_forward_hook(lambda module, args, output: output + 1)
    before = state(model)
    with record_activations(model, "0") as recorded:
        model(x)
    assert state(model) == before
    assert torch.equal(recorded["0"][0], model[0](x))
    handle.remove()


def test_a_copy_that_was_made_inside_records_nothing() -> None:
    model, x = CASES["mlp"].model(), torch.randn(2, 4)
    with record_activations(model, "*") as recorded:
        copied = copy.deepcopy(model)
        copied(x)
        assert not any(recorded.values())
    assert torch.equal(copied(x), model(x))
    assert not any(recorded.values())


# With what else changes a forward


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_forward_is_recorded_once(use_reentrant: bool) -> None:
    model, x = CASES["float64"].model(), CASES["float64"].batch().requires_grad_()
    expected = torch.autograd.grad(single_loss(model, x), list(model.parameters()))
    with record_activations(model, "*") as recorded:
        output = checkpoint(model, x, use_reentrant=use_reentrant)
        (output.square() + output.tanh()).mean().backward()
    assert [len(calls) for calls in recorded.values()] == [1, 1, 1]
    assert torch.equal(recorded["2"][0], output)
    assert all(calls[0].requires_grad is not use_reentrant for calls in recorded.values())
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


def test_a_checkpointed_frozen_layer_recomputes_the_same_graph() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    with record_activations(model, "0") as recorded:
        loss = checkpoint(model, torch.randn(3, 4), use_reentrant=False).square().sum()
        gradient_penalty(loss, recorded).backward()
    assert len(recorded["0"]) == 1
    assert model[2].weight.grad is not None


def compiled(model: nn.Module, **options: Any) -> nn.Module:
    made: Any = torch.compile(model, backend="aot_eager", **options)
    return made


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_model_compiled_inside_is_recorded_and_right() -> None:
    model, x = CASES["mlp"].model(), CASES["mlp"].batch()
    found = []
    wrapper = compiled(model)
    for network in (model, wrapper):
        model.zero_grad()
        with record_activations(model, "0") as recorded:
            loss = single_loss(network, x)
        penalty = gradient_penalty(loss, recorded)
        penalty.backward()
        found.append([recorded["0"][0], penalty, *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert (one is None and other is None) or bool(torch.isclose(one, other).all())
    assert_close(wrapper(x), model(x))
    assert len(recorded["0"]) == 1


@pytest.mark.compile
def test_fullgraph_is_an_error() -> None:
    model, x = CASES["mlp"].model(), CASES["mlp"].batch()
    refused = pytest.raises(
        torch._dynamo.exc.Unsupported, match="record_activations cannot be compiled into a graph"
    )
    with record_activations(model, "0"), refused:
        compiled(model, fullgraph=True)(x)


@pytest.mark.compile
def test_a_model_compiled_before_records_nothing_and_a_penalty_says_so() -> None:
    model, x = CASES["mlp"].model(), CASES["mlp"].batch()
    wrapper = compiled(model)
    wrapper(x)
    with record_activations(model, "0") as recorded:
        loss = single_loss(wrapper, x)
    assert recorded == {"0": []}
    with pytest.raises(wn.WeightNoiseError, match=r"torch\.compile had compiled before does not see new hooks"):
        gradient_penalty(loss, recorded)


def test_what_torch_compile_made_is_refused() -> None:
    in_place = CASES["mlp"].model()
    in_place.compile(backend="aot_eager")
    part = nn.Sequential(compiled(CASES["mlp"].model()), nn.Linear(3, 2))
    for model, which, name in (
        (compiled(CASES["mlp"].model()), "2", "2"),
        (in_place, "2", "2"),
        (part, "*.2", "0._orig_mod.2"),
        (part, "0", "0"),
    ):
        before = state(model)
        with pytest.raises(wn.WeightNoiseError) as caught, record_activations(model, which):
            pass
        assert str(caught.value) == (
            f"Module '{name}' belongs to what torch.compile made, which does not see new hooks and cannot be "
            "differentiated twice. Record and call the module that it was made from."
        )
        assert state(model) == before
    with record_activations(part, "1") as recorded:
        part[1](torch.randn(2, 3))
    assert len(recorded["1"]) == 1


# Choosing


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("0", ["0"]),
        ("*", ["0", "1", "2"]),
        ("[01]", ["0", "1"]),
        ("", [""]),
        (nn.Linear, ["0", "2"]),
        (nn.Sequential, [""]),
        (nn.Module, ["", "0", "1", "2"]),
        (["2", nn.Tanh, "2"], ["1", "2"]),
        (("2", "*"), ["0", "1", "2"]),
    ],
)
@pytest.mark.parametrize("noise", [None, 0.1])
def test_names_globs_and_classes(which: Any, expected: list[str], noise: float | None) -> None:
    model = CASES["mlp"].model()
    if noise is not None:
        wn.add_weight_noise(model, noise)
    with record_activations(model, which) as recorded:
        model(torch.randn(2, 4))
    assert list(recorded) == expected
    assert all(len(calls) == 1 for calls in recorded.values())


def test_stars_cross_dots() -> None:
    with record_activations(nn.Sequential(CASES["mlp"].model(), nn.Tanh()), "*") as recorded:
        pass
    assert list(recorded) == ["0", "0.0", "0.1", "0.2", "1"]


@pytest.mark.parametrize("noise", [None, 0.1])
@pytest.mark.parametrize(
    ("which", "kind", "text"),
    [
        (
            "enocder.0",
            wn.NoMatchError,
            "Pattern 'enocder.0' matches no module. Closest names: 'encoder.0', 'encoder.1', 'encoder'.",
        ),
        (
            "Head*",
            wn.NoMatchError,
            "Pattern 'Head*' matches no module. Closest names: 'head', 'head.0'.",
        ),
        (
            "zzz",
            wn.NoMatchError,
            "Pattern 'zzz' matches no module. Closest names: 'encoder', 'encoder.0', 'encoder.1'.",
        ),
        (
            nn.LSTM,
            wn.NoMatchError,
            "Class LSTM matches no module. Classes in the model: Linear, ModuleDict, Sequential, Tanh.",
        ),
        (["head", 3], wn.SpecError, "Key 3 must be a pattern of names (str) or a module class."),
        (dict, wn.SpecError, "Key <class 'dict'> must be a pattern of names (str) or a module class."),
        ([], wn.SpecError, "which is empty. Name modules: which='*'."),
        (
            ["haed", "head", int],
            wn.WeightNoiseError,
            "2 problems, nothing was changed:\n"
            "  - Key <class 'int'> must be a pattern of names (str) or a module class.\n"
            "  - Pattern 'haed' matches no module. Closest names: 'head', 'head.0'.",
        ),
    ],
)
def test_keys_that_choose_nothing(which: Any, kind: type[Exception], text: str, noise: float | None) -> None:
    model = nn.ModuleDict(
        {"encoder": nn.Sequential(nn.Linear(2, 2), nn.Tanh()), "head": nn.Sequential(nn.Linear(2, 2))}
    )
    if noise is not None:
        wn.add_weight_noise(model, noise)
    before = state(model)
    with pytest.raises(kind) as caught, record_activations(model, which):
        pass
    assert type(caught.value) is kind
    assert str(caught.value) == text
    assert state(model) == before


def test_a_model_without_submodules_and_no_model() -> None:
    with pytest.raises(wn.NoMatchError) as caught, record_activations(nn.Linear(2, 2), "*"):
        pass
    assert str(caught.value) == (
        "Pattern '*' matches no module. Closest names: none, the model has no modules but itself, ''."
    )
    no_model: Any = "model"
    with (
        pytest.raises(TypeError, match=r"^model must be a torch\.nn\.Module, got str\.$"),
        record_activations(no_model, "*"),
    ):
        pass
