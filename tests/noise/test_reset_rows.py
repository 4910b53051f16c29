"""Noise of its own for each row of a batch, made anew for some of them: environments whose episode has ended."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import weightnoise as wn

SIZES = [8, 64]  # Drawn by torch's generator, and by the engine.
ROWS = 6
ESTIMATORS = ["flipout", "local"]
LAYERS: dict[str, tuple[Any, Any]] = {
    "linear": (lambda size: nn.Linear(size, size, bias=False), lambda size: torch.ones(ROWS, size)),
    "positions": (lambda size: nn.Linear(size, size, bias=False), lambda size: torch.ones(ROWS, 3, size)),
    "convolution": (lambda size: nn.Conv1d(size, size, 1, bias=False), lambda size: torch.ones(ROWS, size, 3)),
}


def make(kind: str, estimator: Any, size: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer, x = LAYERS[kind]
    return wn.add_weight_noise(nn.Sequential(layer(size)), 0.1, estimator=estimator), x(size)


def changed(before: Tensor, after: Tensor) -> list[bool]:
    """Which rows are not the same to the last bit."""
    return (before != after).flatten(1).any(dim=1).tolist()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "rows", [[1, 4], torch.tensor([1, 4]), torch.tensor([False, True, False, False, True, False]), [1, 4, 1]]
)
def test_rows_that_are_reset_are_drawn_anew_and_the_others_stay(
    rows: Any, kind: str, estimator: str, size: int
) -> None:
    model, x = make(kind, estimator, size)
    with torch.no_grad(), wn.hold_noise(model, seed=0) as held:
        first = model(x)
        held.reset(rows=rows)
        second = model(x)
        assert changed(first, second) == [False, True, False, False, True, False]
        held.reset(rows=rows)
        third = model(x)
        assert changed(second, third) == changed(first, third) == changed(first, second)
        held.reset(rows=[])
        assert torch.equal(model(x), third)
        held.reset()
        assert all(changed(third, model(x)))
    with torch.no_grad(), wn.hold_noise(model, seed=0) as held:  # A series that the seed makes again.
        assert torch.equal(model(x), first)
        held.reset(rows=rows)
        assert torch.equal(model(x), second)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_row_has_one_noise_whatever_the_batch_and_others_do(estimator: str, size: int) -> None:
    model, x = make("linear", estimator, size)
    with torch.no_grad(), wn.hold_noise(model, seed=0) as held:
        held.reset(rows=[2])
        whole = model(x)
        torch.testing.assert_close(model(x[:3]), whole[:3], rtol=1e-5, atol=1e-6)  # Products of another shape.
        more = model(torch.ones(ROWS + 3, size))
        torch.testing.assert_close(more[:ROWS], whole, rtol=1e-5, atol=1e-6)
        held.reset(rows=[ROWS + 1])
        assert changed(more, model(torch.ones(ROWS + 3, size))) == [row == ROWS + 1 for row in range(ROWS + 3)]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rows_and_turns_are_independent(estimator: str) -> None:
    # Correlations of the noise of 64 outputs between all rows of three turns.
    model, x = make("linear", estimator, 64)
    turns = []
    with torch.no_grad(), wn.no_noise(model):
        clean = model(x)
    with torch.no_grad(), wn.hold_noise(model, seed=0) as held:
        for _ in range(3):
            turns.append(model(x) - clean)
            held.reset(rows=range(ROWS))
    noise = torch.cat(turns).double()
    scores = torch.corrcoef(noise) * 64**0.5
    scores.fill_diagonal_(0)
    # The largest of 153 standard normal numbers exceeds 4.5 in one of 1,000 runs, and the seeds are fixed.
    assert scores.abs().max() < 4.5
    assert 0.5 < scores[~torch.eye(3 * ROWS, dtype=torch.bool)].square().mean() < 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_mirror_follows(estimator: str, size: int) -> None:
    model, x = make("linear", estimator, size)
    found = []
    for sign in (1, -1):
        with torch.no_grad(), wn.hold_noise(model, seed=0, sign=sign) as held:
            held.reset(rows=[0, 3])
            found.append(model(x))
    with torch.no_grad(), wn.no_noise(model):
        torch.testing.assert_close((found[0] + found[1]) / 2, model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_computes_again_with_the_rows_of_its_forward(
    reentrant: bool, estimator: str, size: int
) -> None:
    model, x = make("linear", estimator, size)
    x.requires_grad_()
    weight = model.get_parameter("0.weight")
    grads = []
    for around in (False, True):
        model.zero_grad()
        with wn.hold_noise(model, seed=0) as held:
            held.reset(rows=[1])
            y: Any = checkpoint(model, x, use_reentrant=reentrant) if around else model(x)
            if around:
                held.reset(rows=[0, 1, 2])  # After the forward, before the backward.
            y.square().sum().backward()
        assert weight.grad is not None
        grads.append(weight.grad.clone())
    torch.testing.assert_close(grads[0], grads[1])


def test_a_copy_in_the_hold_follows_and_a_nested_hold_does_not() -> None:
    model, x = make("linear", "flipout", 8)
    with torch.no_grad(), wn.hold_noise(model, seed=0) as held:
        twin = copy.deepcopy(model)
        held.reset(rows=[2])
        assert torch.equal(model(x), twin(x))
        outer = model(x)
        with wn.hold_noise(model, seed=1) as inner:
            before = model(x)
            inner.reset(rows=[0])
            assert changed(before, model(x)) == [row == 0 for row in range(ROWS)]
        assert torch.equal(model(x), outer)


@pytest.mark.parametrize("rows", [1, [[1]], [0.5], [-1], torch.zeros(2, 2, dtype=torch.bool)])
def test_what_is_no_rows_is_refused(rows: Any) -> None:
    model, _ = make("linear", "flipout", 8)
    with wn.hold_noise(model) as held, pytest.raises(ValueError, match=r"reset\(rows=...\) takes"):
        held.reset(rows=rows)


def test_noise_that_is_one_for_all_rows_is_refused_by_name() -> None:
    shared = wn.add_weight_noise(nn.Sequential(nn.Linear(4, 4)), 0.1)
    activations = wn.add_activation_noise(make("linear", "flipout", 8)[0], {"0": wn.Gaussian(0.1)})
    for model, name in ((shared, "'0.weight'"), (activations, "'0'")):
        with wn.hold_noise(model) as held, pytest.raises(ValueError, match=f"{name}.*or call reset"):
            held.reset(rows=[0])


@pytest.mark.parametrize("kind", LAYERS)
def test_an_input_without_a_batch_is_refused(kind: str) -> None:
    model, x = make(kind, "flipout", 8)
    with wn.hold_noise(model) as held:
        held.reset(rows=[0])
        with pytest.raises(wn.WeightNoiseError, match="without a batch"):
            model(x[0] if kind == "convolution" else x.flatten()[:8])


@pytest.mark.compile
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_compiled_code_follows_and_compiles_once_more(estimator: str) -> None:
    model, x = make("linear", estimator, 64)
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad(), wn.hold_noise(model, seed=0) as held:
        held.reset(rows=[5])
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for rows in ([0], [1, 2], [5]):
                held.reset(rows=rows)
                assert torch.allclose(compiled(x), model(x), atol=1e-6)
