"""The kernel for GPUs in Triton's interpreter, which runs on a CPU: the bits of the generator in C."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from weightnoise._random import philox as _engine

# Up to 3.4, functions cannot be compiled in a process in which some were interpreted.
LEAST = (3, 5)


def triton_version() -> tuple[int, ...]:
    """Nothing where it is not installed."""
    if importlib.util.find_spec("triton") is None:
        return ()
    return tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2])


pytestmark = [
    pytest.mark.skipif(triton_version() < LEAST, reason="Triton is not installed, or old"),
    pytest.mark.skipif(_engine.engine() == "torch", reason="built without a C compiler, or switched off"),
]

SCALES = ["none", "row", "place"]


def imported(patch: pytest.MonkeyPatch, *, interpret: bool) -> Any:
    """The module, whose functions were made for the interpreter or for a compiler."""
    patch.setenv("TRITON_INTERPRET", "1" if interpret else "0")
    patch.delitem(sys.modules, "weightnoise._random.triton", raising=False)
    patch.setattr(wn, "_triton", None, raising=False)  # The import sets it, and the patch takes it away again.
    return importlib.import_module("weightnoise._random.triton")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield imported(monkeypatch, interpret=True)
    sys.modules.pop("weightnoise._random.triton", None)


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (33, 77), (5, 1000), (3, 4, 5, 7), (2049,)], ids=str)
@pytest.mark.parametrize("scales", SCALES)
def test_the_bits_are_those_of_the_generator_in_c(interpreted: Any, shape: tuple[int, ...], scales: str) -> None:
    weight, key = torch.randn(shape), torch.randint(2**63 - 1, ())
    scale = {
        "none": None,
        "row": torch.rand(shape[0], *[1] * (len(shape) - 1)),
        "place": torch.rand(1, *shape[1:]),
    }[scales]
    out = torch.empty_like(weight)
    interpreted.add_normal(out, weight, key, 0.37, *_engine._scales(scale, weight))
    assert torch.equal(out, _engine.add_normal(weight, int(key), 0.37, scale))


@pytest.mark.parametrize("key", [0, 1, 2**32, 2**63 - 2])
def test_with_keys_at_the_ends(interpreted: Any, key: int) -> None:
    weight = torch.randn(3000)
    out = torch.empty_like(weight)
    interpreted.add_normal(out, weight, torch.tensor(key), 1.0, None)
    assert torch.equal(out, _engine.add_normal(weight, key, 1.0, None))


def test_it_writes_nowhere_else(interpreted: Any) -> None:
    memory = torch.full((400,), 7.0)
    interpreted.add_normal(memory[100:167], torch.zeros(67), torch.tensor(5), 1.0, None)
    assert torch.equal(memory[:100], torch.full((100,), 7.0))
    assert torch.equal(memory[167:], torch.full((233,), 7.0))
    assert not bool((memory[100:167] == 7.0).any())


LAWS = {
    "absolute": wn.Gaussian(0.1),
    "per row": wn.Gaussian(0.1, relative_to="absmax", per=0),
    "per tensor": wn.Gaussian(0.1, relative_to="std"),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_a_model_trains_as_with_the_generator_in_c(
    interpreted: Any, law: wn.Gaussian, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    plain = interpreted.add_normal
    monkeypatch.setattr(interpreted, "add_normal", lambda *args: calls.append(1) or plain(*args))  # type: ignore[func-returns-value]
    found: list[list[Tensor]] = []
    for on_gpu in (False, True):
        monkeypatch.setattr(_engine, "_TRITON", True)
        monkeypatch.setattr(_engine, "by_triton", lambda weight, on_gpu=on_gpu: on_gpu)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 64), nn.Tanh(), nn.Linear(64, 50))
        wn.add_weight_noise(model, law, memory=memory)
        model(torch.ones(3, 40)).square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    # No gradient goes to the input, so that autograd asks for the second weight alone.
    assert len(calls) == (2 if memory == "keep" else 3)
    for mine, expected in zip(*found, strict=True):
        assert torch.equal(mine, expected)


def test_it_says_that_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Triton" not in wn.engine()
    monkeypatch.setattr(_engine, "_TRITON", True)
    assert wn.engine().endswith("; on CUDA philox (Triton)")
    assert not _engine.by_triton(torch.zeros(3000))


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_and_contracts_nothing(capability: int, scales: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler: Any = importlib.import_module("triton.compiler")
    backends: Any = importlib.import_module("triton.backends.compiler")
    module = imported(monkeypatch, interpret=False)
    signature = dict.fromkeys(("out", "weight", "scale", "coefficients"), "*fp32")
    signature |= {"key": "*i64", "count": "i32", "row_size": "i32", "strength": "fp32"}
    signature |= {"scales": "constexpr", "blocks": "constexpr"}
    source = compiler.ASTSource(
        fn=module.kernel, signature=signature, constexprs={"scales": scales, "blocks": module.BLOCKS}
    )
    target = backends.GPUTarget("cuda", capability, 32)
    made = compiler.compile(source, target=target, options={"enable_fp_fusion": False})
    assert len(made.asm["cubin"]) > 1000
    assert not re.search(r"\bfma\b", made.asm["ptx"])
