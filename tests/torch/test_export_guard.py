"""An export while noise is on is an error with the two ways out; off, it is the clean graph."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import weightnoise as wn
from tests.cases import ReadsTwice, torch_before

# torch's own deprecations of the tracing exporter.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit")

X = (torch.ones(2, 3),)


def strict(model: nn.Module) -> Callable[..., Any]:
    return torch.export.export(model, X, strict=True).module()


def non_strict(model: nn.Module) -> Callable[..., Any]:
    return torch.export.export(model, X, strict=False).module()


def trace(model: nn.Module) -> Callable[..., Any]:
    traced: Callable[..., Any] = torch.jit.trace(model, X)
    return traced


def make() -> nn.Module:
    return wn.add_weight_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), 0.1)


@pytest.mark.parametrize("export", [strict, non_strict, trace])
def test_noise_on_is_an_error_that_prints_the_ways_out(export: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(Exception, match=r"Weight noise is on for '0\.weight'") as caught:
        export(make())
    assert "with weightnoise.no_noise(model):" in str(caught.value)
    assert "weightnoise.remove_weight_noise(model)" in str(caught.value)
    if export is not strict:  # Dynamo wraps what it meets while it traces.
        assert isinstance(caught.value, wn.ExportError)


@pytest.mark.parametrize("export", [strict, non_strict, trace])
@pytest.mark.parametrize("way", ["no_noise", "removed"])
def test_off_or_removed_it_is_the_clean_graph(export: Callable[[nn.Module], Any], way: str) -> None:
    model = make()
    if way == "removed":
        exported: Callable[..., Tensor] = export(wn.remove_weight_noise(model))
        expected = model(*X)
    else:
        with wn.no_noise(model):
            exported, expected = export(model), model(*X)
    assert torch.equal(exported(*X), expected)
    assert torch.equal(exported(*X), exported(*X))


def onnx_by_tracing(model: nn.Module) -> None:
    torch.onnx.export(model, X, io.BytesIO(), dynamo=False)


def onnx(model: nn.Module) -> None:
    torch.onnx.export(model, X, dynamo=True)


needs_onnxscript = pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs onnxscript")


@pytest.mark.filterwarnings("ignore:::torch.onnx", "ignore:You are using the legacy TorchScript-based ONNX export")
@pytest.mark.parametrize("export", [onnx_by_tracing, pytest.param(onnx, marks=needs_onnxscript)])
def test_noise_on_is_an_error_for_onnx(export: Callable[[nn.Module], None]) -> None:
    with pytest.raises(Exception, match=r"with weightnoise\.no_noise\(model\)"):
        export(make().eval())


LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "lstm": (lambda: nn.LSTM(3, 2), torch.ones(4, 1, 3)),
    "embedding": (lambda: nn.Embedding(4, 3, padding_idx=0), torch.tensor([0, 1])),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval(), torch.ones(1, 3, 4)),
    "normed": (lambda: parametrizations.weight_norm(nn.Linear(3, 2)), torch.ones(1, 3)),
    "of one's own": (ReadsTwice, torch.ones(2, 4)),
}


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights:UserWarning")  # A plain nn.LSTM too.
@pytest.mark.parametrize("is_strict", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer_is_refused_with_noise_and_exports_clean_without(kind: str, is_strict: bool) -> None:
    if kind == "lstm" and torch_before("2.9"):
        pytest.skip("torch before 2.9: its export fails at the list of weights of an nn.LSTM or of its subclass")
    if kind in ("embedding", "of one's own") and is_strict and torch_before("2.8"):
        pytest.skip("torch before 2.8: its strict export reads the Parameter, and exports the clean model")
    make_layer, x = LAYERS[kind]
    model = wn.add_weight_noise(make_layer(), 0.1)
    with pytest.raises(RuntimeError, match=r"with weightnoise\.no_noise\(model\)"):
        torch.export.export(model, (x,), strict=is_strict)
    with wn.no_noise(model):
        program = torch.export.export(model, (x,), strict=is_strict)
    assert list(program.state_dict) == list(model.state_dict())
    assert "rand" not in str(program.graph)


def test_training_noise_exports_in_eval_mode() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1, when="training")
    with pytest.raises(wn.ExportError):
        torch.export.export(model, X, strict=False)
    program = torch.export.export(model.eval(), X, strict=False)
    assert torch.equal(program.module()(*X), model(*X))


def test_a_refused_export_leaves_the_model_noisy_and_working() -> None:
    model = make()
    with pytest.raises(wn.ExportError):
        torch.export.export(model, X, strict=False)
    assert not torch.equal(model(*X), model(*X))


def test_scripting_with_noise_is_an_error_that_prints_the_way_out() -> None:
    for noisy in (make(), wn.add_weight_noise(nn.Linear(3, 2), 0.1)):
        with pytest.raises(wn.ExportError, match=r"weightnoise\.remove_weight_noise\(model\)"):
            torch.jit.script(noisy)


def test_scripting_inside_no_noise_is_not_told_to_use_no_noise() -> None:
    model = make()
    with wn.no_noise(model), pytest.raises(wn.ExportError, match="remove_weight_noise") as caught:
        torch.jit.script(model)
    assert "no_noise" not in str(caught.value)


def test_scripting_works_after_removal() -> None:
    model = make()
    wn.remove_weight_noise(model)
    assert torch.equal(torch.jit.script(model)(*X), model(*X))
