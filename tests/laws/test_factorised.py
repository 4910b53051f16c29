"""Factorised noise: the bias of a layer has the numbers of the outputs that the rows of its weight have."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn

SIZES = [8, 64]
LAW = wn.LearnedGaussian(1.0, factorised=True)
# The ways to write the law on the weight and on the bias; what else is in them leaves the noise as it is.
NESTED: dict[str, tuple[Any, Any]] = {
    "alone": (LAW, LAW),
    "list": ([wn.Clip(low=-9.0, high=9.0), LAW], LAW),
    "lists": ([LAW, wn.Gaussian(0.0)], [wn.Gaussian(0.0), LAW]),
    "chain": (wn.laws.Chain((wn.laws.Chain((LAW, wn.Gaussian(0.0))), wn.Gaussian(0.0))), LAW),
    "protect": (wn.Protect([LAW][0], 0.5, scale=1.0), wn.Protect(LAW, 0.5, scale=1.0)),
    "frozen": (wn.Frozen(LAW, chip=3), wn.Frozen(LAW, chip=3)),
    "frozen_in_lists": ([wn.Frozen(LAW, chip=3), wn.Gaussian(0.0)], [wn.Frozen(LAW, chip=3), wn.Gaussian(0.0)]),
}


class Seen:
    """Keeps what a forward reads of its weight and its bias, in either order."""

    pairs: tuple[tuple[str, str], ...] = (("weight", "bias"),)
    bias_first = False
    seen: dict[str, Tensor]

    def look(self: Any) -> None:
        names = [name for pair in self.pairs for name in (pair[::-1] if self.bias_first else pair)]
        self.seen = {name: getattr(self, name) for name in names}


def seen(base: type[nn.Module], *pairs: tuple[str, str]) -> Callable[..., Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.look()
        return base.forward(self, *args, **kwargs)

    return type(f"Seen{base.__name__}", (Seen, base), {"forward": forward, "pairs": pairs or Seen.pairs})


Linear = seen(nn.Linear)


def noise_of(layer: Any, weight: str, bias: str) -> tuple[Tensor, Tensor]:
    clean = dict(layer.named_parameters())
    return (layer.seen[weight] - clean[weight]).detach(), (layer.seen[bias] - clean[bias]).detach()


def rows(noise: Tensor, transposed: bool = False, groups: int = 1) -> Tensor:
    """The noise of a weight as a matrix for each group, one row for each output."""
    grouped = noise.reshape(groups, -1, *noise.shape[1:])
    return (grouped.transpose(1, 2) if transposed else grouped).flatten(2)


def assert_shared(weight: Tensor, bias: Tensor, **layout: Any) -> None:
    """W_ij = f(e_i) f(e_j) and b_i = f(e_i): W_ij b_k = W_kj b_i, of which neither is zero."""
    matrix = rows(weight, **layout).double()
    own = bias.double().reshape(matrix.shape[:2])
    assert bool((own != 0).any())
    for group, numbers in zip(matrix, own, strict=True):
        crossed = group[:, None, :] * numbers[None, :, None]
        assert_close(crossed, crossed.transpose(0, 1), rtol=2e-4, atol=2e-4)
        assert bool((crossed != 0).any())


def is_shared(weight: Tensor, bias: Tensor) -> bool:
    try:
        assert_shared(weight, bias)
    except AssertionError:
        return False
    return True


def make(size: int, law: tuple[Any, Any] = (LAW, LAW), bias_first: bool = False, **options: Any) -> Any:
    torch.manual_seed(0)
    layer = Linear(size, size)
    layer.bias_first = bias_first
    with torch.no_grad():
        layer.bias.zero_()  # So that nothing rounds the noise.
        layer.weight.zero_()
    return wn.add_weight_noise(layer, {"weight": law[0], "bias": law[1]}, **options)


def read(layer: Any) -> tuple[Tensor, Tensor]:
    layer(torch.ones(2, layer.in_features))
    return noise_of(layer, "weight", "bias")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bias_first", [False, True])
@pytest.mark.parametrize("nested", sorted(NESTED))
@pytest.mark.parametrize(
    "held", [None, {}, {"seed": 5}, {"seed": 5, "sign": -1}, {"sign": -1}, {"reads": "fresh"}]
)
def test_the_bias_has_the_numbers_of_its_rows(size: int, bias_first: bool, nested: str, held: Any) -> None:
    layer = make(size, NESTED[nested], bias_first)
    with nullcontext() if held is None else wn.hold_noise(layer, **held):
        weight, bias = read(layer)
        assert_shared(weight, bias)
        again = read(layer)
        assert_shared(*again)
    frozen = "frozen" in nested or (held is not None and "reads" not in held)
    assert torch.equal(bias, again[1]) is torch.equal(weight, again[0]) is frozen


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bias_first", [False, True])
def test_a_held_draw_does_not_depend_on_what_is_read_first(size: int, bias_first: bool) -> None:
    layer, other = make(size, bias_first=bias_first), make(size)
    with wn.hold_noise(layer, seed=3), wn.hold_noise(other, seed=3):
        for one, two in zip(read(layer), read(other), strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("size", SIZES)
def test_a_hold_that_is_reset_or_moves_on_keeps_them_together(size: int) -> None:
    layer = make(size)
    found = []
    with wn.hold_noise(layer, seed=1) as held:
        for change in (lambda: None, held.reset, held.advance, held.advance, held.reset):
            change()
            assert_shared(*read(layer))
            found.append(read(layer)[1])
    with wn.hold_noise(layer, every=1):
        for _ in range(3):
            assert_shared(*read(layer))
            found.append(read(layer)[1])
    assert len({tuple(one.tolist()) for one in found}) == len(found)


@pytest.mark.parametrize("size", SIZES)
def test_strength_and_mirror_are_those_of_each_parameter(size: int) -> None:
    """The noise of the bias over its sigma, and of the weight over its own, are f(e_i) and f(e_i) f(e_j)."""
    layer = make(size)
    strengths = wn.learned_strengths(layer)
    with torch.no_grad():
        for value in strengths.values():
            value.uniform_(0.5, 2.0)
    std = [strengths[f"parametrizations.{name}.0.std"].detach() for name in ("weight", "bias")]
    with wn.scale_noise(layer, 0.5):
        weight, bias = read(layer)
        assert_shared(weight / std[0], bias / std[1])
    with wn.hold_noise(layer, seed=2):
        ahead = read(layer)
    with wn.hold_noise(layer, seed=2, sign=-1):
        back = read(layer)
    assert torch.equal(ahead[0], -back[0])
    assert torch.equal(ahead[1], -back[1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("held", [False, True])
def test_the_distributions_stay(size: int, held: bool) -> None:
    """E b^2 = E|e| = sqrt(2 / pi), E W^2 = 2 / pi, and both have mean 0."""
    layer = make(size)
    biases, weights = [], []
    for seed in range(4000 // size):
        with wn.hold_noise(layer, seed=seed) if held else nullcontext():
            weight, bias = read(layer)
        biases.append(bias)
        weights.append(weight.square().mean())
    found = torch.stack(biases).flatten().double()
    # Var |e| = 1 - 2 / pi; 5 s.e. of some 4,000 numbers.
    spread = 5 * math.sqrt((1 - 2 / math.pi) / found.numel())
    assert abs(found.square().mean().item() - math.sqrt(2 / math.pi)) < spread
    assert abs(found.mean().item()) < 5 * (2 / math.pi) ** 0.25 / math.sqrt(found.numel())
    # E W^2 over a matrix is a product of means of |e| over rows and over columns.
    assert abs(torch.stack(weights).mean().item() - 2 / math.pi) < 3 * spread


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("which", ["weight", "bias"])
def test_one_of_them_alone(size: int, which: str) -> None:
    torch.manual_seed(0)
    layer = Linear(size, size)
    wn.add_weight_noise(layer, {which: LAW})
    (other,) = {"weight", "bias"} - {which}
    for hold in (nullcontext(), wn.hold_noise(layer, seed=0)):
        with hold:
            noise = dict(zip(("weight", "bias"), read(layer), strict=True))
        assert not noise[other].any()
        assert noise[which].abs().max() > 0.5
        if which == "weight":  # Of rank one.
            assert torch.linalg.matrix_rank(noise[which].double(), rtol=1e-5) == 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("law", [wn.Gaussian(1.0), wn.LearnedGaussian(1.0)], ids=repr)
def test_other_laws_on_the_bias_have_numbers_of_their_own(size: int, law: Any) -> None:
    layer = make(size, (LAW, law))
    assert not is_shared(*read(layer))
    with wn.hold_noise(layer, seed=0):
        assert not is_shared(*read(layer))


@pytest.mark.parametrize("size", SIZES)
def test_layers_have_numbers_of_their_own(size: int) -> None:
    torch.manual_seed(0)
    layers = [make(size) for _ in range(2)]  # Each added by itself, under the same names.
    model = nn.Sequential(*layers)
    for hold in (nullcontext(), wn.hold_noise(model), wn.hold_noise(model, seed=0)):
        with hold:
            model(torch.ones(2, size))
        first, second = (noise_of(layer, "weight", "bias") for layer in layers)
        assert_shared(*first)
        assert_shared(*second)
        assert not is_shared(first[0], second[1])


@pytest.mark.parametrize("size", SIZES)
def test_two_factorised_laws_of_one_list_have_numbers_of_their_own(size: int) -> None:
    """W = f(a) f(c) + f(b) f(d) has rank two, and the noise of the bias, f(a) + f(b), lies in its columns."""
    layer = make(size, ([LAW, LAW], [LAW, LAW]))
    for hold in (nullcontext(), wn.hold_noise(layer, seed=0)):
        with hold:
            weight, bias = read(layer)
        assert torch.linalg.matrix_rank(weight.double(), rtol=1e-5) == 2
        joined = torch.cat([weight, bias[:, None]], dim=1).double()
        assert torch.linalg.matrix_rank(joined, rtol=1e-5) == 2


class Conv1D(nn.Module):
    """As that of Transformers: the outputs are the second dimension of the weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size + 2))
        self.bias = nn.Parameter(torch.zeros(size + 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


Conv1D.__module__, Conv1D.__qualname__ = "transformers.pytorch_utils", "Conv1D"
Grouped = {"groups": 2}
LAYERS: dict[str, tuple[Callable[[int], Any], Callable[[int], Tensor], dict[str, Any]]] = {
    "conv1d": (lambda n: seen(nn.Conv1d)(n, n + 2, 3), lambda n: torch.ones(2, n, 5), {}),
    "conv2d": (lambda n: seen(nn.Conv2d)(n, 2 * n, 3, groups=2), lambda n: torch.ones(2, n, 5, 5), Grouped),
    "conv3d": (lambda n: seen(nn.Conv3d)(n, n, 2), lambda n: torch.ones(1, n, 3, 3, 3), {}),
    "depthwise": (lambda n: seen(nn.Conv2d)(n, n, 3, groups=n), lambda n: torch.ones(2, n, 5, 5), {"groups": -1}),
    "transposed": (
        lambda n: seen(nn.ConvTranspose1d)(n, n + 2, 3),
        lambda n: torch.ones(2, n, 5),
        {"transposed": True},
    ),
    "transposed_groups": (
        lambda n: seen(nn.ConvTranspose2d)(n, n, 3, groups=2),
        lambda n: torch.ones(2, n, 5, 5),
        {"transposed": True, **Grouped},
    ),
    "gpt": (lambda n: seen(Conv1D)(n), lambda n: torch.ones(2, n), {"transposed": True}),
    "bilinear": (lambda n: seen(nn.Bilinear)(4, 3, n), lambda n: torch.ones(2, 4), {}),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bias_first", [False, True])
@pytest.mark.parametrize("held", [None, {"seed": 0}])
@pytest.mark.parametrize("case", sorted(LAYERS))
def test_the_layers_of_torch_whose_outputs_are_known(case: str, held: Any, bias_first: bool, size: int) -> None:
    build, inputs, layout = LAYERS[case]
    if layout.get("groups") == -1:
        layout = {"groups": size}
    torch.manual_seed(0)
    layer = build(size)
    layer.bias_first = bias_first
    wn.add_weight_noise(layer, LAW, min_ndim=1)
    args = (inputs(size), torch.ones(2, 3)) if case == "bilinear" else (inputs(size),)
    with nullcontext() if held is None else wn.hold_noise(layer, **held):
        layer(*args)
    weight, bias = noise_of(layer, "weight", "bias")
    assert_shared(weight, bias, **layout)
    # One number for each input, of which each group has its own.
    matrix = rows(weight, **layout)
    if matrix.shape[0] > 1:
        ratios = matrix[:, 0] / matrix[:, 0, :1]
        assert not torch.allclose(ratios[0], ratios[1])


RECURRENT: dict[str, tuple[type[nn.RNNBase], list[str], dict[str, Any]]] = {
    "rnn": (nn.RNN, ["l0", "l1"], {"num_layers": 2}),
    "lstm": (nn.LSTM, ["l0", "l0_reverse"], {"bidirectional": True}),
    "gru": (nn.GRU, ["l0"], {}),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bias_first", [False, True])
@pytest.mark.parametrize("held", [None, {"seed": 0}])
@pytest.mark.parametrize("case", sorted(RECURRENT))
def test_each_bias_of_a_recurrent_layer_belongs_to_the_weight_of_its_name(
    case: str, held: Any, bias_first: bool, size: int
) -> None:
    kind, ends, options = RECURRENT[case]
    pairs = [(f"weight_{io}_{end}", f"bias_{io}_{end}") for end in ends for io in ("ih", "hh")]
    torch.manual_seed(0)
    layer = seen(kind, *pairs)(size, size, **options)
    layer.bias_first = bias_first
    wn.add_weight_noise(layer, LAW, min_ndim=1)
    with nullcontext() if held is None else wn.hold_noise(layer, **held):
        layer(torch.ones(3, 2, size))
    found = [noise_of(layer, *pair) for pair in pairs]
    for place, (weight, bias) in enumerate(found):
        assert_shared(weight, bias)
        assert not is_shared(weight, found[place - 1][1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("held", [None, {"seed": 0}])
def test_attention(size: int, held: Any) -> None:
    torch.manual_seed(0)
    layer = seen(nn.MultiheadAttention, ("in_proj_weight", "in_proj_bias"))(size, 2)
    wn.add_weight_noise(layer, LAW, min_ndim=1)
    out: dict[str, Tensor] = {}
    linear = torch.nn.functional.multi_head_attention_forward

    def forward(*args: Any, **kwargs: Any) -> Any:  # Which gets the weight and the bias of out_proj.
        out.update(weight=args[11], bias=args[12])
        return linear(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, nullcontext() if held is None else wn.hold_noise(layer, **held):
        patch.setattr(torch.nn.functional, "multi_head_attention_forward", forward)
        x = torch.ones(3, 2, size, requires_grad=True)
        found = []
        for _ in range(2):
            layer(x, x, x)
            assert_shared(*noise_of(layer, "in_proj_weight", "in_proj_bias"))
            clean = dict(layer.named_parameters())
            weight, bias = (out[name].detach() - clean[f"out_proj.{name}"].detach() for name in ("weight", "bias"))
            assert_shared(weight, bias)
            found.append(bias)
    assert torch.equal(*found) is (held is not None)


class Custom(Seen, nn.Module):
    """A layer of somebody's own: which dimension has its outputs, nobody knows."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        self.look()
        return x @ self.seen["weight"] + self.seen["bias"]


@pytest.mark.parametrize("size", SIZES)
def test_layers_whose_outputs_are_not_known_share_nothing(size: int) -> None:
    layer = wn.add_weight_noise(Custom(size), LAW, min_ndim=1)
    for hold in (nullcontext(), wn.hold_noise(layer, seed=0)):
        with hold:
            layer(torch.ones(2, size))
        weight, bias = noise_of(layer, "weight", "bias")
        assert not is_shared(weight, bias)
        assert not is_shared(weight.T, bias)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("held", [None, {"seed": 0}])
def test_a_head_that_is_tied_to_an_embedding(size: int, held: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(size, size), Linear(size, size))
    model[1].weight = model[0].weight
    wn.add_weight_noise(model, LAW, min_ndim=1)
    with nullcontext() if held is None else wn.hold_noise(model, **held):
        model(torch.arange(3))
    clean = dict(model.named_parameters())
    weight = (model[1].seen["weight"] - clean["0.weight"]).detach()
    assert_shared(weight, (model[1].seen["bias"] - clean["1.bias"]).detach())


@pytest.mark.parametrize("size", SIZES)
def test_noise_that_is_added_in_two_calls(size: int) -> None:
    torch.manual_seed(0)
    layer = Linear(size, size)
    wn.add_weight_noise(wn.add_weight_noise(layer, {"bias": LAW}), {"weight": LAW})
    for hold in (nullcontext(), wn.hold_noise(layer, seed=0)):
        with hold:
            assert_shared(*read(layer))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bias_first", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("preserve", [True, False])
def test_a_checkpoint_computes_again_with_the_same_numbers(
    size: int, bias_first: bool, reentrant: bool, inside: bool, preserve: bool
) -> None:
    """Around the layer, and inside its forward around the read of one of the two."""
    layer = make(size, bias_first=bias_first)
    options: Any = {"use_reentrant": reentrant, "preserve_rng_state": preserve}
    all_seen: list[dict[str, Tensor]] = []

    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            reads: dict[str, Tensor] = {}
            all_seen.append(reads)

            def part(x: Tensor) -> Tensor:
                again = dict(reads)
                all_seen.append(again)
                if bias_first:
                    again["weight"] = self.weight
                    return x @ again["weight"].T
                again["bias"] = self.bias
                return x.sin() + again["bias"]

            if bias_first:
                reads["bias"] = self.bias
                result: Tensor = checkpoint(part, x, **options) + reads["bias"]
            else:
                reads["weight"] = self.weight
                result = checkpoint(part, x @ reads["weight"].T, **options)
            return result

    x = torch.ones(2, size, requires_grad=True)
    if not inside:
        checkpoint(layer, x, **options).sum().backward()
        assert_shared(*noise_of(layer, "weight", "bias"))
        return
    plain = Own(size, size)
    with torch.no_grad():
        plain.weight.zero_()
        plain.bias.zero_()
    wn.add_weight_noise(plain, {"weight": LAW, "bias": LAW})
    plain(x).sum().backward()
    whole = [one for one in all_seen if len(one) == 2]
    assert len(whole) == 2
    for one in whole:
        assert_shared(one["weight"].detach(), one["bias"].detach())
    assert torch.equal(whole[0]["bias"], whole[1]["bias"])
    assert torch.equal(whole[0]["weight"], whole[1]["weight"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("nested", sorted(NESTED))
def test_weights_that_the_backward_makes_again(size: int, nested: str) -> None:
    layer = make(size, NESTED[nested], memory="recompute")
    x = torch.ones(2, size, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert_close(x.grad, layer.seen["weight"].detach().sum(dim=0).expand(2, size))
    assert_shared(*noise_of(layer, "weight", "bias"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("held", [None, {"seed": 0}, {}])
@pytest.mark.parametrize("nested", ["alone", "lists", "protect"])
def test_compiled(size: int, held: Any, nested: str) -> None:
    """y(x) = W x + b: y(0) = b, and y(x) - y(0) has the rows of W."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = wn.add_weight_noise(nn.Linear(size, size), dict(zip(("weight", "bias"), NESTED[nested], strict=True)))
    with torch.no_grad():
        layer._parameters["weight"].zero_()
        layer._parameters["bias"].zero_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.cat([torch.zeros(1, size), torch.eye(size)])
    found = []
    with nullcontext() if held is None else wn.hold_noise(layer, **held):
        for _ in range(2):
            y = compiled(x).detach()
            assert_shared((y[1:] - y[0]).T, y[0])
            found.append(y)
    assert torch.equal(*found) is (held is not None)
    torch._dynamo.reset()


@pytest.mark.parametrize("size", SIZES)
def test_compiled_attention_leaves_its_last_layer_to_python(size: int) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(size, 2)
    wn.add_weight_noise(layer, {"out_proj.*": LAW}, min_ndim=1)
    with torch.no_grad():
        layer.out_proj._parameters["weight"].zero_()
        layer.out_proj._parameters["bias"].zero_()
    compiled = torch.compile(layer, backend="eager")
    # What goes into the last layer is one vector for all queries of an example: y = W v + b.
    x = torch.randn(size + 1, 1, size).requires_grad_()
    for _ in range(3):
        y = compiled(x, x, x)[0][:, 0].detach()
        rank = torch.linalg.matrix_rank(y.double(), rtol=1e-4)
        assert rank == 1  # W v + b = f(e) (g . v + 1) for any v.
    torch._dynamo.reset()


@pytest.mark.parametrize("size", SIZES)
def test_many_draws_at_once(size: int) -> None:
    layer = make(size)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}
    x = torch.cat([torch.zeros(1, size), torch.eye(size)])

    def call(scale: Tensor) -> Any:
        return functional_call(layer, parameters, (x * scale,))

    found = torch.vmap(call, randomness="different")(torch.ones(3))
    for y in found.detach():
        assert_shared((y[1:] - y[0]).T, y[0])
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("size", SIZES)
def test_a_draw_that_a_step_goes_along_is_the_held_one(size: int) -> None:
    layer = make(size)
    with wn.hold_noise(layer, seed=4):
        weight, bias = read(layer)
    wn.step_along(layer, seed=4, amount=1.0)
    clean = dict(layer.named_parameters())
    assert_close(clean["weight"].detach(), weight)
    assert_close(clean["bias"].detach(), bias)


@pytest.mark.parametrize("size", SIZES)
def test_one_draw_is_left_in_the_weights(size: int) -> None:
    layer = make(size)
    with wn.hold_noise(layer, seed=4):
        expected = read(layer)
        wn.remove_weight_noise(layer, bake=True)
    assert torch.equal(layer.weight.detach(), expected[0])
    assert torch.equal(layer.bias.detach(), expected[1])
    layer = make(size)
    wn.remove_weight_noise(layer, bake=True)
    assert_shared(layer.weight.detach(), layer.bias.detach())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["config", "deepcopy", "pickle", "schedule", "training"])
def test_wherever_noise_comes_from(size: int, way: str) -> None:
    layer = make(size)
    strength = 1.0
    if way == "config":
        layer = make(
            size, (wn.spec_from_config({"type": "LearnedGaussian", "init": 1.0, "factorised": True}),) * 2
        )
    elif way == "deepcopy":
        layer = copy.deepcopy(layer)
    elif way == "pickle":
        wn.remove_weight_noise(layer)
        other = wn.add_weight_noise(nn.Linear(size, size), {"weight": LAW, "bias": LAW})
        other = pickle.loads(pickle.dumps(other))
        with torch.no_grad():
            other._parameters["weight"].zero_()
            other._parameters["bias"].zero_()
        y = other(torch.cat([torch.zeros(1, size), torch.eye(size)])).detach()
        assert_shared((y[1:] - y[0]).T, y[0])
        return
    elif way == "schedule":
        wn.NoiseScheduler(layer, lambda step: 0.5)
        strength = 0.5
    elif way == "training":
        layer = make(size, when="training").train()
    found = [read(layer) for _ in range(20)]
    for one in found:
        assert_shared(*one)
    spread = torch.stack([bias for _, bias in found]).double().std().item()
    assert 0.5 < spread / (strength * (2 / math.pi) ** 0.25) < 1.5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("held", [None, {"seed": 0}])
def test_other_precisions(size: int, dtype: torch.dtype, held: Any) -> None:
    """A weight in a short dtype with a bias in float32, as mixed precision has them, has its numbers rounded."""
    torch.manual_seed(0)
    layer = Linear(size, size)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    layer.weight = nn.Parameter(layer.weight.detach().to(dtype))
    wn.add_weight_noise(layer, {"weight": LAW, "bias": LAW})
    with nullcontext() if held is None else wn.hold_noise(layer, **held), pytest.raises(RuntimeError):
        layer(torch.ones(2, size))  # torch refuses the mixture, once both are read.
    weight, bias = noise_of(layer, "weight", "bias")
    first = weight.double()[:, :1]
    ratio = (first / bias.double()[:, None]).flatten()
    assert_close(ratio, ratio.median().expand(size), rtol=3 * torch.finfo(dtype).eps + 1e-6, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_an_estimator_shares_nothing(size: int) -> None:
    """Each example has signs of its own for the rows, and the bias, which is one for all, its own numbers."""
    torch.manual_seed(0)
    layer = nn.Linear(size, size)
    wn.add_weight_noise(layer, {"weight": LAW}, estimator="flipout")
    wn.add_weight_noise(layer, {"bias": LAW})
    with torch.no_grad():
        layer._parameters["weight"].zero_()
        layer._parameters["bias"].zero_()
    x = torch.cat([torch.zeros(1, size), torch.eye(size)])
    for hold in (nullcontext(), wn.hold_noise(layer, seed=0)):
        with hold:
            y = layer(x).detach()
            assert not is_shared((y[1:] - y[0]).abs().T, y[0].abs())
    wn.share_noise(layer)  # One draw for all examples, as on a chip.
    for hold in (nullcontext(), wn.hold_noise(layer, seed=0)):
        with hold:
            y = layer(x).detach()
            assert_shared((y[1:] - y[0]).T, y[0])
