"""Export of what was noisy: files that are loaded again, other runtimes, and the guard for every kind of noise."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.cases import CASES, NOT_QUANTISED, needs_torch

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
kinds = pytest.mark.parametrize("kind", KINDS)


def make(kind: str = "weights") -> nn.Module:
    return KINDS[kind](CASES["mlp"].model())


def remove(model: nn.Module) -> nn.Module:
    return wn.remove_weight_noise(model) if wn.has_weight_noise(model) else wn.remove_activation_noise(model)


def exported(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Through a file, with a batch of any size."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (X,), dynamic_shapes=({0: batch},), strict=False)
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


WAYS = pytest.mark.parametrize("export", [exported, traced], ids=lambda way: way.__name__)


@WAYS
@kinds
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
@WAYS
@kinds
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


def test_noise_on_one_layer_alone_is_enough_for_the_guard() -> None:
    model = make()
    with wn.no_noise(model[0]):
        with pytest.raises(Exception, match=r"noise is on for '2\.weight'"):
            exported(model)
        with wn.no_noise(model[2]):
            exported(model)


def test_training_noise_in_eval_mode_exports_and_forced_does_not() -> None:
    model = wn.add_weight_noise(CASES["mlp"].model(), 0.2, when="training").eval()
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


@pytest.mark.filterwarnings(
    "ignore"
)  # The exporter and its packages warn about themselves, differently by version.
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
