"""Recurrent layers keep a list of their weights and read each of them several times."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import torch_before
from tests.helpers import Counting
from tests.reference import held_weights, plain_copy_with

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

LAYERS: dict[str, Any] = {
    "lstm": lambda: nn.LSTM(4, 3),
    "lstm_layers": lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True),
    "lstm_projected": lambda: nn.LSTM(4, 5, proj_size=2),
    "gru": lambda: nn.GRU(4, 3, num_layers=2),
    "rnn": lambda: nn.RNN(4, 3, bidirectional=True),
}


def at_rest(layer: nn.RNNBase) -> bool:
    names = layer._flat_weights_names
    return all(w is layer._parameters[n] for w, n in zip(layer._flat_weights, names, strict=True))


def copied_after_training(layer: nn.RNNBase) -> nn.RNNBase:
    layer(torch.randn(5, 2, 4))[0].sum().backward()
    layer.zero_grad()
    return copy.deepcopy(layer)


@pytest.mark.parametrize(
    "change", [lambda m: m, lambda m: m.double(), lambda m: m.flatten_parameters() or m, copied_after_training]
)
@pytest.mark.parametrize("kind", LAYERS)
def test_every_weight_is_noisy_and_gets_the_right_gradient(kind: str, change: Any) -> None:
    layer = change(wn.add_weight_noise(LAYERS[kind](), 0.1, min_ndim=1))
    assert all(p.grad is None for p in layer.parameters())
    x = torch.randn(5, 2, 4, dtype=next(layer.parameters()).dtype)
    plain = plain_copy_with(layer, held_weights(layer, 0))
    with wn.hold_noise(layer, seed=0):
        output = layer(x)[0]
        output.square().sum().backward()
    expected = plain(x)[0]
    expected.square().sum().backward()
    assert torch.equal(output, expected)
    for noisy, clean in zip(layer.parameters(), plain.parameters(), strict=True):
        assert torch.equal(noisy.grad, clean.grad)
    assert not torch.equal(layer(x)[0], layer(x)[0])


@pytest.mark.parametrize("kind", LAYERS)
def test_one_draw_per_weight_and_forward(kind: str) -> None:
    layer, law = LAYERS[kind](), Counting()
    wn.add_weight_noise(layer, law)
    count = len(wn.noisy_parameters(layer))
    for forwards in (1, 2, 3):
        layer(torch.randn(5, 2, 4))
        assert len(law.draws) == forwards * count


@pytest.mark.parametrize("kind", LAYERS)
def test_at_rest_the_flat_weights_are_the_parameters(kind: str) -> None:
    layer = wn.add_weight_noise(LAYERS[kind](), 0.1)
    assert at_rest(layer)
    layer(torch.randn(5, 2, 4))[0].sum().backward()
    assert at_rest(layer)
    assert at_rest(layer.double())
    with pytest.raises(ValueError, match="input must have the type" if torch_before("2.9") else "dtype"):
        layer(torch.randn(5, 2, 4))
    assert at_rest(layer)
    with pytest.raises(RuntimeError, match=r"input\.size"):
        layer(torch.randn(5, 2, 7, dtype=torch.float64))
    assert at_rest(layer)
    assert at_rest(wn.remove_weight_noise(layer))


def test_noise_reaches_a_weight_that_comes_after_clean_ones() -> None:
    # nn.LSTM looks for the first weight that has changed, and only then refreshes its list.
    layer = wn.add_weight_noise(nn.LSTM(4, 3, num_layers=2), {"weight_hh_l1": 0.1})
    x = torch.randn(5, 2, 4)
    assert not torch.equal(layer(x)[0], layer(x)[0])


def test_noise_added_or_switched_between_two_forwards_takes_effect_at_once() -> None:
    layer, x = nn.LSTM(4, 3), torch.randn(5, 2, 4)
    clean = layer(x)[0]
    wn.add_weight_noise(layer, 0.1)
    assert not torch.equal(layer(x)[0], clean)
    with wn.no_noise(layer):
        assert torch.equal(layer(x)[0], clean)
    assert not torch.equal(layer(x)[0], clean)
    assert torch.equal(wn.remove_weight_noise(layer)(x)[0], clean)


def test_a_layer_made_from_the_class_of_a_noisy_one_is_plain() -> None:
    cls: Any = type(wn.add_weight_noise(nn.LSTM(4, 3), 0.1))
    layer, x = cls(4, 3), torch.randn(5, 2, 4)
    assert torch.equal(layer(x)[0], layer(x)[0])
    assert at_rest(layer)


def test_two_threads_use_the_weights_that_each_of_them_drew() -> None:
    gathered, go_on = threading.Event(), threading.Event()

    class Pausing(nn.LSTM):
        """Waits between gathering its weights and using them, in the thread that is called slow."""

        def check_forward_args(self, *args: Any) -> None:
            super().check_forward_args(*args)
            if threading.current_thread().name == "slow":
                gathered.set()
                assert go_on.wait(20)

    layer, x = wn.add_weight_noise(Pausing(4, 3), 0.1), torch.randn(5, 2, 4)
    with wn.no_noise(layer):
        clean = layer(x)[0]
    found: list[Tensor] = []
    slow = threading.Thread(target=lambda: found.append(layer(x)[0]), name="slow")
    slow.start()
    assert gathered.wait(20)
    other = layer(x)[0]
    go_on.set()
    slow.join()
    assert not torch.equal(found[0], clean)
    assert not torch.equal(found[0], other)


def test_copies_after_a_forward_and_after_a_conversion() -> None:
    layer = wn.add_weight_noise(nn.LSTM(4, 3), 0.1)
    layer(torch.randn(5, 2, 4))[0].sum().backward()
    for other in (copy.deepcopy(layer), copy.deepcopy(layer.double()), copy.deepcopy(layer.float())):
        other.float()(torch.randn(5, 2, 4))
        assert at_rest(other)
        assert other._flat_weights[0] is not layer._flat_weights[0]


def test_a_conversion_draws_nothing() -> None:
    layer, law = nn.LSTM(4, 3), Counting()
    wn.add_weight_noise(layer, law)
    layer.double().float()
    copy.deepcopy(layer)
    assert law.draws == []


def test_packed_sequences() -> None:
    layer = wn.add_weight_noise(nn.LSTM(4, 3), 0.1)
    packed = pack_sequence([torch.randn(5, 4), torch.randn(3, 4)])
    plain = plain_copy_with(layer, held_weights(layer, 0))
    with wn.hold_noise(layer, seed=0):
        assert torch.equal(layer(packed)[0].data, plain(packed)[0].data)


def test_an_attribute_error_in_the_noise_is_not_mistaken_for_a_missing_weight() -> None:
    def broken(weight: Tensor) -> Tensor:
        return weight.no_such_method()  # type: ignore[attr-defined]

    for model, x in ((nn.LSTM(4, 3), torch.randn(5, 2, 4)), (nn.Linear(4, 3), torch.randn(2, 4))):
        wn.add_weight_noise(model, wn.Custom(broken))
        with pytest.raises(RuntimeError, match=r"raised AttributeError: '\w+' object has no attribute"):
            model(x)
        if isinstance(model, nn.LSTM):
            assert at_rest(model)


def test_a_cell_draws_at_every_time_step_unless_held() -> None:
    cell, law = nn.LSTMCell(4, 3), Counting()
    wn.add_weight_noise(cell, law)
    state = None
    for _ in range(3):
        state = cell(torch.randn(2, 4), state)
    assert len(law.draws) == 3 * 2
    with wn.hold_noise(cell):
        for _ in range(3):
            state = cell(torch.randn(2, 4), state)
    assert len(law.draws) == 4 * 2


def test_weight_norm_on_a_recurrent_weight_and_noise() -> None:
    layer = nn.LSTM(4, 3)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    plain, x = copy.deepcopy(layer), torch.randn(5, 2, 4)
    wn.add_weight_noise(layer, 0.1)
    assert set(wn.noisy_parameters(layer)) == {"weight_ih_l0", "weight_hh_l0"}
    layer(x)[0].sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    copy.deepcopy(layer)(x)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    wn.remove_weight_noise(layer)
    assert_close(layer(x)[0], plain(x)[0])
