"""Embeddings: the rows that are looked up have the noise of the whole draw, and the padding row none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.helpers import seen
from weightnoise._attach import embedding as _lookup
from weightnoise._random import philox as _engine

TOKENS = torch.tensor([[3, 7, 7, 0], [499, 3, 250, 1]])
BAG = {"input": torch.tensor([3, 7, 7, 0, 499, 3, 250, 1, 4]), "offsets": torch.tensor([0, 3, 3, 7])}
LAWS = {
    "absolute": wn.Gaussian(0.1),
    "absmax": wn.Gaussian(0.1, relative_to="absmax"),
    "std per row": wn.Gaussian(0.1, relative_to="std", per=0),
    "absmax per column": wn.Gaussian(0.1, relative_to="absmax", per=1),
    "rms per row, from the end": wn.Gaussian(0.1, relative_to="rms", per=-2),
}


def layers() -> dict[str, tuple[Any, dict[str, Any]]]:
    torch.manual_seed(0)
    weights = {"per_sample_weights": torch.rand(9)}
    return {
        "embedding": (nn.Embedding(500, 40), {"input": TOKENS}),
        "padding": (nn.Embedding(500, 40, padding_idx=7), {"input": TOKENS}),
        "sparse": (nn.Embedding(500, 40, padding_idx=7, sparse=True), {"input": TOKENS}),
        "scalar": (nn.Embedding(500, 40), {"input": torch.tensor(4)}),
        "int32": (nn.Embedding(500, 40), {"input": TOKENS.int()}),
        "bag mean": (nn.EmbeddingBag(500, 40), BAG),
        "bag sum": (nn.EmbeddingBag(500, 40, mode="sum", padding_idx=7), {**BAG, **weights}),
        "bag sparse": (nn.EmbeddingBag(500, 40, mode="sum", sparse=True), BAG),
        "bag max": (nn.EmbeddingBag(500, 40, mode="max", padding_idx=3), BAG),
        "bag of rows": (nn.EmbeddingBag(500, 40), {"input": TOKENS}),
        "bag last offset": (
            nn.EmbeddingBag(500, 40, include_last_offset=True),
            {**BAG, "offsets": torch.tensor([0, 3, 9])},
        ),
    }


def run(layer: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    layer.zero_grad()
    output = layer(**inputs)
    output.square().sum().backward()
    (parameter,) = layer.parameters()
    grad: Any = parameter.grad
    return output, grad


@pytest.mark.skipif(_engine.engine() == "torch", reason="built without a C compiler, or switched off")
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("name", layers())
def test_rows_are_those_of_the_whole_draw(name: str, law: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, inputs = layers()[name]
    wn.add_weight_noise(layer, law)
    drawn = []
    plain = _engine.add_normal
    monkeypatch.setattr(_engine, "add_normal", lambda *args: drawn.append(1) or plain(*args))  # type: ignore[func-returns-value]
    output, grad = run(layer, inputs)
    assert not drawn
    monkeypatch.setattr(_lookup, "_SHARE", 10**9)
    expected, expected_grad = run(layer, inputs)
    assert drawn
    assert torch.equal(output, expected)
    assert grad.layout == expected_grad.layout
    assert_close(grad.to_dense(), expected_grad.to_dense())


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("name", layers())
def test_rows_of_a_held_draw_are_those_of_the_whole(
    name: str, law: wn.Gaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, inputs = layers()[name]
    wn.add_weight_noise(layer, law)
    whole, plain = [], wn.Gaussian.apply
    monkeypatch.setattr(wn.Gaussian, "apply", lambda *args: whole.append(1) or plain(*args))  # type: ignore[func-returns-value]
    for sign in (1, -1):
        with wn.hold_noise(layer, seed=3, sign=sign), wn.scale_noise(layer, 0.5):
            monkeypatch.setattr(_lookup, "_SHARE", 4)
            output, grad = run(layer, inputs)
            assert not whole
            monkeypatch.setattr(_lookup, "_SHARE", 10**9)
            expected, expected_grad = run(layer, inputs)
            assert whole.pop()
        assert torch.equal(output, expected)
        assert grad.layout == expected_grad.layout
        assert_close(grad.to_dense(), expected_grad.to_dense())


@pytest.mark.parametrize("width", [1, 3, 17, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_rows_of_a_held_draw_in_any_width_and_dtype(
    width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = wn.add_weight_noise(nn.Embedding(500, width, padding_idx=7, dtype=dtype), 0.1)
    with wn.hold_noise(layer):
        output = layer(TOKENS)
        monkeypatch.setattr(_lookup, "_SHARE", 10**9)
        assert torch.equal(output, layer(TOKENS))


def test_the_same_token_has_the_same_noise_and_padding_none() -> None:
    layer = nn.Embedding(500, 40, padding_idx=7)
    with torch.no_grad():
        layer.weight[7] = 2.0
    clean = copy.deepcopy(layer)(TOKENS)
    noisy = wn.add_weight_noise(layer, 0.1)(TOKENS)
    assert torch.equal(noisy[0, 0], noisy[1, 1])
    assert torch.equal(noisy[0, 1], torch.full((40,), 2.0))
    assert (noisy - clean)[1].std().item() == pytest.approx(0.1, rel=0.3)
    assert not torch.equal(layer(TOKENS), layer(TOKENS))


@pytest.mark.parametrize(
    ("layer", "tokens"),
    [
        (nn.Embedding(500, 40, scale_grad_by_freq=True), TOKENS),
        (nn.Embedding(20, 1000), TOKENS % 20),
        (nn.Embedding(200, 8), TOKENS % 200),
        (nn.Embedding(500, 40).double(), TOKENS),
    ],
    ids=["frequencies", "most of the rows", "small", "double"],
)
def test_what_draws_the_whole_weight(layer: Any, tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_engine, "add_normal_rows", None)
    assert not torch.equal(wn.add_weight_noise(layer, 0.1)(tokens), layer(tokens))


def test_in_contexts() -> None:
    layer = nn.Embedding(500, 40)
    clean = copy.deepcopy(layer)(TOKENS)
    wn.add_weight_noise(layer, 0.1, when="training")
    with wn.no_noise(layer):
        assert torch.equal(layer(TOKENS), clean)
    assert torch.equal(layer.eval()(TOKENS), clean)
    layer.train()
    with wn.hold_noise(layer, seed=0):
        assert torch.equal(layer(TOKENS), layer(TOKENS))
    torch.manual_seed(0)
    once = layer(TOKENS) - clean
    torch.manual_seed(0)
    with wn.scale_noise(layer, 3.0):
        assert_close(layer(TOKENS) - clean, 3 * once)


@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_checkpointed_and_traced(memory: Any) -> None:
    model = nn.Sequential(nn.Embedding(500, 40), nn.Linear(40, 3))
    wn.add_weight_noise(model, 0.1, memory=memory)
    found = []
    for call in (model, lambda tokens: checkpoint(model, tokens, use_reentrant=False)):
        torch.manual_seed(1)
        model.zero_grad()
        call(TOKENS).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for mine, expected in zip(*found, strict=True):
        assert_close(mine, expected)
    with pytest.raises(wn.ExportError):
        torch.export.export(model, (TOKENS,))


def test_beside_another_parametrization() -> None:
    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    layer = wn.add_weight_noise(nn.Embedding(500, 40), 0.1)
    nn.utils.parametrize.register_parametrization(layer, "weight", Double())
    clean = 2 * layer._parameters["weight"].detach()[TOKENS]
    assert (layer(TOKENS) - clean).std().item() == pytest.approx(0.2, rel=0.3)


class Scaled(nn.Embedding):
    """An embedding with a tensor of its own beside the weight, which its forward leaves alone."""

    def __init__(self) -> None:
        super().__init__(500, 40)
        self.extra = nn.Parameter(torch.ones(2, 2))


def test_noise_on_another_tensor_alone() -> None:
    layer = wn.add_weight_noise(Scaled(), {"extra": 0.1})
    assert torch.equal(layer(TOKENS), layer._parameters["weight"][TOKENS])


def test_noise_that_is_off_beside_noise_that_is_on() -> None:
    layer = wn.add_weight_noise(Scaled(), {"weight": 0.1}, when="training")
    wn.add_weight_noise(layer, {"extra": 0.1})
    assert torch.equal(layer.eval()(TOKENS), layer._parameters["weight"][TOKENS])
    assert not torch.equal(layer.train()(TOKENS), layer._parameters["weight"][TOKENS])


# The padding row, and sparse gradients.


@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
def test_the_padding_row_stays_clean(make: Any) -> None:
    model = wn.add_weight_noise(make(5, 3, padding_idx=1), 0.1)
    clean = model._parameters["weight"]
    moved = (seen(model) != clean).all(dim=1)
    assert moved.tolist() == [True, False, True, True, True]
    model(torch.tensor([[0, 1, 2]])).sum().backward()
    assert torch.equal(clean.grad[1], torch.zeros(3))


def test_the_padding_row_stays_clean_under_a_law_whose_backward_needs_its_result() -> None:
    model = wn.add_weight_noise(nn.Embedding(5, 3, padding_idx=1), wn.Custom(torch.tanh))
    clean = model._parameters["weight"]
    model(torch.tensor([0, 1, 2])).sum().backward()
    expected = (1 - clean.detach().tanh().square()) * torch.tensor([1.0, 0, 1, 0, 0])[:, None]
    assert_close(clean.grad, expected)
    with torch.no_grad():
        assert torch.equal(model.weight[1], clean[1])


def test_a_law_that_returns_the_weight_itself_does_not_edit_it() -> None:
    model = wn.add_weight_noise(nn.Embedding(5, 3, padding_idx=1), wn.Custom(lambda weight: weight))
    version = model._parameters["weight"]._version
    model(torch.tensor([0, 1, 2]))
    assert model._parameters["weight"]._version == version


@pytest.mark.parametrize(
    "make", [nn.Embedding, lambda *args, **options: nn.EmbeddingBag(*args, mode="sum", **options)]
)
@pytest.mark.parametrize(
    "law",
    [
        wn.Gaussian(0.1),
        wn.Uniform(0.1, relative_to="absmax"),
        wn.Gaussian(0.1, relative_to="value", gradient="exact"),
    ],
)
def test_sparse_gradients_pass_and_are_the_dense_ones(law: wn.Noise, make: Any) -> None:
    sparse = wn.add_weight_noise(make(5, 3, sparse=True, padding_idx=1), law)
    dense = wn.add_weight_noise(make(5, 3, padding_idx=1), law)
    dense.load_state_dict(sparse.state_dict())
    for model in (sparse, dense):
        with wn.hold_noise(model, seed=0):
            model(torch.tensor([[0, 1, 2, 2]])).square().sum().backward()
    found = sparse._parameters["weight"].grad
    assert found.is_sparse
    assert_close(found.to_dense(), dense._parameters["weight"].grad)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func.jvp uses it.
def test_padded_embeddings_under_the_transforms_of_torch_func() -> None:
    model, weights = wn.add_weight_noise(nn.Embedding(5, 3, padding_idx=1), 0.1), torch.randn(4, 5, 3)

    def look_up(weight: Tensor) -> Tensor:
        output: Tensor = functional_call(model, {"weight": weight}, (torch.tensor([0, 1]),))
        return output

    with wn.hold_noise(model, seed=0):
        batched = vmap(look_up)(weights)
        assert torch.equal(batched, torch.stack([look_up(weight) for weight in weights]))
        assert torch.equal(batched[:, 1], weights[:, 1])
        _, tangent = jvp(lambda weight: look_up(weight)[0], (weights[0],), (torch.ones(5, 3),))
        assert torch.equal(tangent, torch.ones(3))
