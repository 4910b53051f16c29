"""Export: an error with the ways out while noise is on; else the plain model, in files and other runtimes."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import weightnoise as wn
from tests.cases import CASES, NOT_QUANTISED, ReadsTwice, needs_torch, torch_before

# torch's own deprecations of the tracing exporter, and what its ONNX exporter meets in the packages it uses.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
]

X = torch.linspace(-1.0, 1.0, 20).reshape(5, 4)

KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weights": lambda model: wn.add_weight_noise(model, 0.2),
    "flipout": lambda model: wn.add_weight_noise(model, 0.2, estimator="flipout"),
    "local": lambda model: wn.add_weight_noise(model, 0.2, estimator="local"),
    "learned": lambda model: wn.add_weight_noise(model, wn.LearnedGaussian(0.2)),
    "a chip": lambda model: wn.add_weight_noise(model, wn.StuckAt(0.2)),
    "activations": lambda model: wn.add_activation_noise(model, 0.2),
}


def make(kind: str = "weights") -> nn.Module:
    return KINDS[kind](CASES["mlp"].model())


def remove(model: nn.Module) -> nn.Module:
    return wn.remove_weight_noise(model) if wn.has_weight_noise(model) else wn.remove_activation_noise(model)


def exported(model: nn.Module, strict: bool = False) -> Callable[[Tensor], Tensor]:
    """Through a file, with a batch of any size."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (X,), dynamic_shapes=({0: batch},), strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded: Callable[[Tensor], Tensor] = torch.export.load(file).module()
    return loaded


def traced(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Through a file."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, (X,)), file)
    file.seek(0)
    loaded: Callable[[Tensor], Tensor] = torch.jit.load(file)
    return loaded


def strictly(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Through Dynamo, which wraps the errors that it meets while it traces."""
    return exported(model, strict=True)


WAYS = [exported, traced, strictly]
PAIRS = [pytest.param(kind, way, id=f"{kind}-{way.__name__}") for way in (exported, traced) for kind in KINDS]
pairs = pytest.mark.parametrize(("kind", "export"), [*PAIRS, pytest.param("weights", strictly, id="strictly")])


@pytest.mark.parametrize("export", WAYS)
def test_noise_on_is_an_error_that_prints_the_ways_out(export: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(Exception, match=r"Weight noise is on for '0\.weight'") as caught:
        export(make())
    assert "with weightnoise.no_noise(model):" in str(caught.value)
    assert "weightnoise.remove_weight_noise(model)" in str(caught.value)
    if export is not strictly:
        assert isinstance(caught.value, wn.ExportError)


@pairs
def test_the_guard_covers_every_kind_of_noise_and_leaves_the_model_noisy(
    kind: str, export: Callable[[nn.Module], Any]
) -> None:
    model = make(kind)
    with pytest.raises(Exception, match="noise is on for"):
        export(model)
    if kind == "a chip":
        with wn.no_noise(model):
            clean = model(X)
        assert not torch.equal(model(X), clean)
    else:
        assert not torch.equal(model(X), model(X))


@pytest.mark.parametrize("way", ["no_noise", "removed"])
@pairs
def test_a_file_made_without_noise_is_the_plain_model_for_any_batch(
    kind: str, export: Callable[[nn.Module], Callable[[Tensor], Tensor]], way: str
) -> None:
    model, plain = make(kind), CASES["mlp"].model()
    if way == "removed":
        loaded = export(remove(model))
    else:
        with wn.no_noise(model):
            loaded = export(model)
        if kind != "a chip":
            assert not torch.equal(model(X), model(X))
    for x in (X, torch.randn(9, 4)):
        assert torch.equal(loaded(x), plain(x))
        assert torch.equal(loaded(x), loaded(x))


def onnx_by_tracing(model: nn.Module) -> None:
    torch.onnx.export(model, (X,), io.BytesIO(), dynamo=False)


def onnx(model: nn.Module) -> None:
    torch.onnx.export(model, (X,), dynamo=True)


needs_onnxscript = pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs onnxscript")


@pytest.mark.filterwarnings("ignore:::torch.onnx", "ignore:You are using the legacy TorchScript-based ONNX export")
@pytest.mark.parametrize("export", [onnx_by_tracing, pytest.param(onnx, marks=needs_onnxscript)])
def test_noise_on_is_an_error_for_onnx(export: Callable[[nn.Module], None]) -> None:
    with pytest.raises(
        wn.ExportError, match=r"^Weight noise is on for '0.weight' .*with weightnoise\.no_noise\(model\)"
    ):
        export(make().eval())


@pytest.mark.filterwarnings("ignore:::torch.onnx", "ignore:You are using the legacy TorchScript-based ONNX export")
@pytest.mark.parametrize("at", ["output", "input"])
@pytest.mark.parametrize("export", [onnx_by_tracing, pytest.param(onnx, marks=needs_onnxscript)])
def test_noise_on_activations_is_an_error_for_onnx(export: Callable[[nn.Module], None], at: Any) -> None:
    model = wn.add_activation_noise(CASES["mlp"].model(), {"2": 0.2}, at=at).eval()
    text, own = str(model), list(vars(model[2]))
    for _ in range(2):
        with pytest.raises(
            wn.ExportError, match=r"^Activation noise is on for '2' .*with weightnoise\.no_noise\(model\)"
        ):
            export(model)
    assert str(model) == text
    assert list(vars(model[2])) == own


@pytest.mark.parametrize("when", ["always", "training"])
def test_the_text_of_a_model_is_no_export(when: Any) -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(8, 8)), 0.1, when=when)
    assert f"WeightNoise(Gaussian(std=0.1), when={when!r})" in repr(model)


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


def test_noise_on_one_layer_alone_is_enough_for_the_guard() -> None:
    model = make()
    with wn.no_noise(model[0]):
        with pytest.raises(Exception, match=r"noise is on for '2\.weight'"):
            exported(model)
        with wn.no_noise(model[2]):
            exported(model)


def test_training_noise_in_eval_mode_exports_and_forced_does_not() -> None:
    model = wn.add_weight_noise(CASES["mlp"].model(), 0.2, when="training")
    with pytest.raises(wn.ExportError):
        exported(model)
    model.eval()
    assert torch.equal(exported(model)(X), model(X))
    with wn.force_noise(model), pytest.raises(Exception, match="noise is on for"):
        exported(model)


def test_a_baked_draw_is_exported_as_it_is() -> None:
    model = make()
    with wn.hold_noise(model, seed=0):
        expected = model(X)
        wn.remove_weight_noise(model, bake=True)
    assert torch.equal(exported(model)(X), expected)


def test_the_file_holds_the_names_of_the_plain_model() -> None:
    model = make()
    with wn.no_noise(model):
        program = torch.export.export(model, (X,))
        script = torch.jit.trace(model, (X,))
    names = list(CASES["mlp"].model().state_dict())
    assert list(program.state_dict) == names
    assert list(script.state_dict()) == names


def test_learned_strengths_are_in_the_file_until_they_are_removed() -> None:
    model = make("learned")
    with wn.no_noise(model):
        program = torch.export.export(model, (X,))
    assert set(wn.learned_strengths(model)) < set(program.state_dict)
    program = torch.export.export(wn.remove_weight_noise(model), (X,))
    assert list(program.state_dict) == list(CASES["mlp"].model().state_dict())


def test_scripting_with_noise_is_an_error_that_prints_the_way_out() -> None:
    for noisy in (make(), wn.add_weight_noise(nn.Linear(4, 2), 0.1)):
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
    assert torch.equal(torch.jit.script(model)(X), model(X))


@pytest.mark.filterwarnings("ignore")  # Deprecated by torch, which says so at every call.
def test_torchs_dynamic_quantisation_refuses_a_noisy_layer_and_takes_it_after_removal() -> None:
    model, plain = make(), CASES["mlp"].model()
    with pytest.raises(AssertionError, match=NOT_QUANTISED):
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    with wn.no_noise(model), pytest.raises(AssertionError, match=NOT_QUANTISED):
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    quantised = torch.ao.quantization.quantize_dynamic(wn.remove_weight_noise(model), {nn.Linear})
    expected = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})
    assert torch.equal(quantised(X), expected(X))


BATCH_NORM = needs_torch("2.6", "its ONNX exporter cannot translate a batch normalisation")


@pytest.mark.ecosystem
@pytest.mark.filterwarnings("ignore")  # The exporter and its packages warn of themselves, differently by version.
@pytest.mark.parametrize("way", ["no_noise", "removed"])
@pytest.mark.parametrize("case", ["mlp", pytest.param("conv", marks=BATCH_NORM), "transformer", "lstm"])
def test_onnxruntime_puts_out_what_torch_does(case: str, way: str, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime  # type: ignore[import-not-found, import-untyped, unused-ignore]

    plain, x = CASES[case].model().eval(), CASES[case].batch()
    model = wn.add_weight_noise(CASES[case].model(), 0.2).eval()
    file = tmp_path / "model.onnx"
    if way == "removed":
        torch.onnx.export(wn.remove_weight_noise(model), (x,), file, dynamo=True, verbose=False)
    else:
        with pytest.raises(Exception, match=r"with weightnoise\.no_noise\(model\)"):
            torch.onnx.export(model, (x,), file, dynamo=True, verbose=False)
        with wn.no_noise(model):
            torch.onnx.export(model, (x,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file)
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), plain(x).detach(), rtol=1e-4, atol=1e-5)
    assert not any("Random" in node for node in _operators(file))


def _operators(file: Path) -> set[str]:
    import onnx  # type: ignore[import-not-found, import-untyped, unused-ignore]

    return {node.op_type for node in onnx.load(file).graph.node}
