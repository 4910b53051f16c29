"""Means and uncertainties over draws, against closed forms and against all draws at once."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import weightnoise as wn
from weightnoise._random.seeds import derive_seed

WIDTHS = [8, 64]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def linear(width: int, law: Any = 0.1, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Linear:
    return wn.add_weight_noise(nn.Linear(width, width, dtype=dtype), law, **options)


def classifier(width: int) -> nn.Module:
    return wn.add_weight_noise(nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 5)), 0.3)


def batch(width: int, dtype: torch.dtype = torch.float32, rows: int = 6) -> Tensor:
    return torch.randn(rows, width, dtype=dtype)


def drawn(model: nn.Module, x: Tensor, draws: int, antithetic: bool = False, seed: int = 0) -> Tensor:
    """The outputs of all draws, the slow way."""
    found = []
    for draw in range(draws):
        number, sign = (draw // 2, 1 - 2 * (draw % 2)) if antithetic else (draw, 1)
        own = derive_seed(seed, f"draw {number}")
        with torch.no_grad(), wn.hold_noise(model, seed=own, sign=sign), wn.force_noise(model):
            found.append(model(x).to(torch.float64))
    return torch.stack(found)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_linear_model_has_the_mean_and_the_variance_of_the_closed_form(dtype: torch.dtype, width: int) -> None:
    std, draws = 0.1, 400
    model, x = linear(width, std, dtype), batch(width, dtype, rows=2)
    found = wn.predict(model, x, draws)
    with torch.no_grad(), wn.no_noise(model):
        clean = model(x).double()
    exact = (std * x.double().norm(dim=1, keepdim=True)).expand_as(clean)
    assert found.mean.dtype == found.std.dtype == torch.promote_types(dtype, torch.float32)
    unit = torch.finfo(dtype).eps
    # Four standard errors, of the mean and of a variance of normal numbers, and rounding: of the noisy weights and
    # of the output. There are up to 128 outputs, of which the largest is at 2.6 on average.
    slack = 2 * unit * (1 + x.double().norm(dim=1, keepdim=True))
    assert bool(((found.mean - clean).abs() <= 4 * exact / math.sqrt(draws) + slack).all())
    assert bool(((found.std**2 - exact**2).abs() <= 4 * exact**2 * math.sqrt(2 / draws) + 2 * exact * slack).all())


@pytest.mark.parametrize("width", WIDTHS)
def test_antithetic_pairs_give_a_linear_model_its_exact_mean(width: int) -> None:
    std, draws = 0.1, 400
    model, x = linear(width, std), batch(width)
    found = wn.predict(model, x, draws, antithetic=True)
    with torch.no_grad(), wn.no_noise(model):
        assert_close(found.mean, model(x), rtol=0, atol=1e-5)
    exact = std * x.norm(dim=1, keepdim=True)
    # The variance is that of half as many independent numbers.
    assert bool(((found.std**2 - exact**2).abs() <= 4 * exact**2 * math.sqrt(2 / (draws / 2))).all())


def test_the_variance_is_unbiased_with_and_without_pairs() -> None:
    model, x = linear(8, 0.1), torch.ones(1, 8)
    exact, calls = 0.01 * 8, 300
    for antithetic in (False, True):
        found = torch.stack(
            [wn.predict(model, x, 4, seed=seed, antithetic=antithetic).std.square() for seed in range(calls)]
        ).double()
        # 8 outputs of 300 calls, each from 3 degrees of freedom, or 2 of pairs.
        error = exact * math.sqrt(2 / (2 if antithetic else 3) / (8 * calls))
        assert found.mean().item() == pytest.approx(exact, abs=4 * error)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_what_all_draws_at_once_say(width: int, antithetic: bool) -> None:
    model, x = classifier(width), batch(width)
    found = wn.predict(model, x, 10, antithetic=antithetic, seed=3, quantiles=(0.0, 0.1, 0.5, 0.93, 1.0))
    values = drawn(model, x, 10, antithetic, seed=3)
    assert_close(found.mean.double(), values.mean(dim=0), rtol=0, atol=1e-5)
    pairs = values.reshape(5, 2, *values.shape[1:]).mean(dim=1) if antithetic else values
    variance = values.var(dim=0, correction=0) + pairs.var(dim=0, correction=1) / len(pairs)
    assert_close(found.std.double(), variance.sqrt(), rtol=1e-4, atol=1e-6)
    if not antithetic:
        assert_close(found.std.double(), values.std(dim=0), rtol=1e-4, atol=1e-6)
    which = torch.tensor([0.0, 0.1, 0.5, 0.93, 1.0], dtype=torch.float64)
    assert found.quantiles is not None
    assert_close(found.quantiles.double(), values.quantile(which, dim=0), rtol=0, atol=1e-5)
    assert (found.predictive_entropy, found.expected_entropy, found.mutual_information) == (None, None, None)


def entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-300).log()).sum(dim=-1)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_entropies_of_a_classifier(width: int) -> None:
    model, x = classifier(width), batch(width)
    found = wn.predict(model, x, 12, outputs="logits", quantiles=(0.5,))
    p = drawn(model, x, 12).softmax(dim=-1)
    assert_close(found.mean.double(), p.mean(dim=0), rtol=0, atol=1e-6)
    assert_close(found.std.double(), p.std(dim=0), rtol=1e-4, atol=1e-6)
    assert found.predictive_entropy is not None
    assert found.expected_entropy is not None
    assert found.mutual_information is not None
    assert_close(found.predictive_entropy.double(), entropy(p.mean(dim=0)), rtol=0, atol=1e-5)
    assert_close(found.expected_entropy.double(), entropy(p).mean(dim=0), rtol=0, atol=1e-5)
    divergence = (p * (p / p.mean(dim=0)).log()).sum(dim=-1).mean(dim=0)  # The same, as a mean divergence.
    assert_close(found.mutual_information.double(), divergence, rtol=0, atol=1e-5)
    assert bool((found.mutual_information > 0).all())
    assert bool((found.predictive_entropy <= math.log(5)).all())
    ready = nn.Sequential(model, nn.Softmax(dim=-1))
    with pytest.raises(ValueError, match=r"sum to 1 along dimension -1\. Use outputs='logits'"):
        wn.predict(model, x, outputs="probabilities")
    # Under another name the draws are others.
    assert wn.predict(ready, x, 12, outputs="probabilities").mean.sum(dim=-1).tolist() == pytest.approx([1.0] * 6)


def test_draws_that_agree_have_no_mutual_information_and_certain_ones_no_entropy() -> None:
    model, x = linear(8, 0.0), batch(8)
    found = wn.predict(model, x, outputs="logits")
    assert found.predictive_entropy is not None
    assert found.mutual_information is not None
    assert_close(found.mutual_information, torch.zeros(6), rtol=0, atol=1e-6)
    assert_close(found.std, torch.zeros(6, 8), rtol=0, atol=1e-7)
    sure = torch.full((6, 8), -torch.inf).index_fill(1, torch.tensor(0), 0.0)
    certain = wn.predict(model, x, outputs="logits", forward=lambda model, x: sure)
    assert certain.predictive_entropy is not None
    assert torch.equal(certain.predictive_entropy, torch.zeros(6))


def by_position(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """An `nn.Sequential` takes no input by name."""
    return ((kwargs["x"],), {}) if kwargs else None


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["list", "loader", "generator", "mapping"])
def test_batches_of_a_loader_are_joined(kind: str, width: int) -> None:
    model, x = classifier(width), batch(width, rows=10)
    model.register_forward_pre_hook(by_position, with_kwargs=True)
    kinds: dict[str, Callable[[], Any]] = {
        "list": lambda: list(x.split(4)),
        "loader": lambda: DataLoader(TensorDataset(x), batch_size=4),
        "generator": lambda: (part for part in x.split(4)),
        "mapping": lambda: [{"x": part} for part in x.split(4)],
    }
    options: dict[str, Any] = {"outputs": "logits", "quantiles": (0.25, 0.75), "seed": 2}
    whole, parts = wn.predict(model, x, 6, **options), wn.predict(model, kinds[kind](), 6, **options)
    for name in ("mean", "std", "predictive_entropy", "expected_entropy", "quantiles", "mutual_information"):
        assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-6)


def test_targets_and_other_outputs_are_left_to_a_function() -> None:
    model, x, y = classifier(8), batch(8), torch.zeros(6)
    expected = wn.predict(model, x, 4)
    for inputs in ([(x, y)], (x, y), DataLoader(TensorDataset(x, y), batch_size=6)):
        with pytest.raises(TypeError, match=r"what of a batch goes into the model: it is a (tuple|list)\. Say so"):
            wn.predict(model, inputs, 4)
        found = wn.predict(model, inputs, 4, forward=lambda model, batch: model(batch[0]))
        assert_close(found.mean, expected.mean)
    with pytest.raises(TypeError, match="needs a floating-point tensor from the model, and got dict"):
        wn.predict(model, x, forward=lambda model, x: {"logits": model(x)})
    with pytest.raises(TypeError, match=r"and got torch\.int64"):
        wn.predict(model, x, forward=lambda model, x: model(x).argmax(dim=1))
    with pytest.raises(TypeError, match=r"got a TensorDataset\. Put a dataset into a DataLoader"):
        wn.predict(model, TensorDataset(x))


class Watched(nn.Module):
    """Normalises, drops out, counts its forwards in a buffer; one part of it is always in training mode."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.5))
        self.forwards: Tensor
        self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        self.modes.append(self.training or self.layers[2].training)
        output: Tensor = self.layers(x)
        return output


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_model_and_the_random_state_come_back(width: int, training: bool, fails: bool) -> None:
    model = wn.add_weight_noise(Watched(width), 0.1, when="training").train(training)
    model.layers[2].train(not training)
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()

    def batches() -> Iterator[Tensor]:
        yield torch.ones(3, width)
        if fails:
            raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            wn.predict(model, batches(), 4)
    else:
        found = wn.predict(model, batches(), 4)
        assert bool((found.std > 0).any())  # On, though the model is in eval mode.
        assert not found.mean.requires_grad
        assert not found.mean.is_inference()
    assert model.modes == [False] * 4
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.train()
    assert not torch.equal(*(model.layers[0](torch.ones(1, width)) for _ in range(2)))  # No draw is held.


def test_the_same_seed_is_the_same_prediction_and_another_is_another() -> None:
    model, x = classifier(64), batch(64)
    one, again, other = (wn.predict(model, x, 5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.mean, again.mean)
    assert torch.equal(one.std, again.std)
    assert not torch.equal(one.mean, other.mean)


@pytest.mark.parametrize("estimator", ["flipout", "local"])
def test_noise_for_each_example_and_on_activations_is_reproducible_too(estimator: str) -> None:
    models = [
        linear(64, 0.1, estimator=estimator),
        wn.add_activation_noise(nn.Sequential(nn.Linear(64, 64)), {"0": 0.1}),
    ]
    for model in models:
        x, state = batch(64, rows=5), torch.get_rng_state()
        one, again = (wn.predict(model, list(x.split(2)), 6) for _ in range(2))
        assert torch.equal(one.mean, again.mean)
        assert bool((one.std > 0).all())
        assert torch.equal(torch.get_rng_state(), state)


def test_memory_does_not_grow_with_the_draws() -> None:
    model, alive, most = linear(8), [0], [0]

    class Counted(Tensor):
        """Tells how many outputs are there at once."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        output: Tensor = model(x).as_subclass(Counted)
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        weakref.finalize(output, lambda: alive.__setitem__(0, alive[0] - 1))
        return output

    wn.predict(model, batch(8), 4, forward=forward)
    few = most[0]
    wn.predict(model, batch(8), 200, forward=forward)
    assert most[0] == few


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 1}, r"predict\(draws=\.\.\.\) must be a whole number >= 2"),
        ({"draws": 3, "antithetic": True}, "must be a whole number >= 4"),
        ({"draws": 5, "antithetic": True}, r"draws=\.\.\. must be even, got 5"),
        ({"outputs": "classes"}, r"predict\(outputs=\.\.\.\) must be one of 'values', 'logits', 'probabilities'"),
        ({"seed": None}, r"predict\(seed=\.\.\.\) must be a whole number, got None"),
        ({"quantiles": (0.5, 1.5)}, "numbers from 0 to 1"),
        ({"inputs": []}, "at least one batch"),
        ({"outputs": "logits", "forward": lambda model, x: model(x)[:, :1]}, "needs two classes or more"),
        (
            {"outputs": "logits", "forward": lambda model, x: model(x)[None]},
            r"predict\(dim=\.\.\.\) must say which",
        ),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    arguments = {"inputs": batch(8)} | options
    with pytest.raises(ValueError, match=message):
        wn.predict(linear(8), **arguments)


def test_without_noise_there_is_nothing_to_draw() -> None:
    with pytest.raises(wn.NotNoisyError):
        wn.predict(nn.Linear(2, 2), torch.ones(1, 2))


def test_classes_may_be_in_any_dimension() -> None:
    model, x = linear(8), batch(8)
    flat = wn.predict(model, x, 4, outputs="logits")

    def as_images(model: nn.Module, x: Tensor) -> Tensor:
        images: Tensor = model(x)[:, :, None, None].expand(-1, -1, 2, 3)
        return images

    images = wn.predict(model, x, 4, outputs="logits", dim=1, forward=as_images)
    assert images.predictive_entropy is not None
    assert flat.predictive_entropy is not None
    assert images.predictive_entropy.shape == (6, 2, 3)
    assert_close(images.predictive_entropy[:, 1, 2], flat.predictive_entropy)


def test_outputs_of_changing_shape_are_an_error() -> None:
    shapes = iter([2, 3])
    with pytest.raises(ValueError, match="outputs of one shape for a batch"):
        wn.predict(linear(8), batch(8), 2, forward=lambda model, x: model(x)[:, : next(shapes)])
