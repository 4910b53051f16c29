"""Weight noise beside torchao: quantised after training, and trained with fake quantisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import weightnoise as wn

torchao = pytest.importorskip("torchao.quantization", reason="is in the extra 'ecosystem'")
qat = pytest.importorskip("torchao.quantization.qat", reason="is in the extra 'ecosystem'")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
LAW = wn.Gaussian(0.05, relative_to="absmax")
X = torch.linspace(-1, 1, 4 * 64).reshape(4, 64)


def made() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32))


def four_bits() -> Any:
    return torchao.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4)


def prepared() -> nn.Sequential:
    model = made()
    torchao.quantize_(model, qat.QATConfig(four_bits(), step="prepare"))
    return model


def test_a_model_whose_noise_is_off_again_is_quantised_as_the_plain_one() -> None:
    model, plain = wn.remove_weight_noise(wn.add_weight_noise(made(), LAW)), made()
    for one in (model, plain):
        torchao.quantize_(one, torchao.Int8WeightOnlyConfig())
    assert torch.equal(model(X), plain(X))
    with pytest.raises(
        wn.UnsupportedParameterError, match=r"Parameter '0\.weight' is packed as Int8Tensor\. Add noise"
    ):
        wn.add_weight_noise(plain, LAW)


def test_a_model_that_is_quantised_with_its_noise_on_says_so() -> None:
    model = wn.add_weight_noise(made(), LAW)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    with pytest.raises(NotImplementedError, match="Int8Tensor"):
        model(X)


def test_noise_comes_before_the_fake_quantisation() -> None:
    model, by_hand = wn.add_weight_noise(prepared(), LAW), prepared()
    with wn.hold_noise(model, seed=1):
        noisy = [model[place].weight.detach().clone() for place in (0, 2)]
        found = model(X)
        found.square().sum().backward()
    with torch.no_grad():
        for place, weight in zip((0, 2), noisy, strict=True):
            by_hand[place].weight.copy_(weight)
    expected = by_hand(X)
    expected.square().sum().backward()
    assert torch.equal(found, expected)
    assert torch.equal(model[0].weight.grad, by_hand[0].weight.grad)  # Straight through, that at the noisy weight.
    assert not torch.equal(model(X), model(X))
    with wn.no_noise(model):
        assert torch.equal(model(X), prepared()(X))


def test_what_was_trained_is_converted_as_the_weights_are() -> None:
    model, plain = wn.add_weight_noise(prepared(), LAW), made()
    wn.remove_weight_noise(model)
    torchao.quantize_(model, qat.QATConfig(four_bits(), step="convert"))
    torchao.quantize_(plain, four_bits())
    assert torch.equal(model(X), plain(X))


def test_preparing_takes_noise_off() -> None:
    model = wn.add_weight_noise(made(), LAW)
    torchao.quantize_(model, qat.QATConfig(four_bits(), step="prepare"))  # It puts other layers in their places.
    assert not wn.has_weight_noise(model)
    assert torch.equal(model(X), prepared()(X))


def test_the_code_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs/integrations.md").read_text()
    code = page.partition("## torchao")[2].partition("```py\n")[2].partition("```")[0]
    names: dict[str, Any] = {"model": made(), "train": lambda model: model(X).square().mean().backward()}
    exec(code, names)
    assert not wn.has_weight_noise(names["model"])
    assert "IntxUnpacked" in type(names["model"][0].weight).__name__
