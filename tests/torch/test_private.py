"""The names that torch does not publish and that the package uses are there; and they are all in one list."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import weightnoise
from weightnoise._torch import modes
from weightnoise._torch.checkpoints import CHECKPOINT_CODES
from weightnoise._torch.forwards import PUTS_PARTS
from weightnoise._torch.generator import seed_cpu

ROOT = Path(weightnoise.__file__).parent

# Attributes of torch's modules and tensors, with something that has to have them.
ATTRIBUTES: dict[str, Any] = {
    "_modules": nn.Linear(1, 1),
    "_parameters": nn.Linear(1, 1),
    "_forward_hooks": nn.Linear(1, 1),
    "_forward_pre_hooks": nn.Linear(1, 1),
    "_compiled_call_impl": nn.Linear(1, 1),
    "_load_from_state_dict": nn.Linear(1, 1),
    "_apply": nn.Linear(1, 1),
    "_conv_forward": nn.Conv2d(1, 1, 1),
    "_flat_weights": nn.LSTM(1, 1),
    "_flat_weights_names": nn.LSTM(1, 1),
    "_version": torch.zeros(1),
    "_cdata": torch.zeros(1).untyped_storage(),
    "_len_torch_dispatch_stack": torch._C,
    "_current_graph_task_id": torch._C,
    "_current_level": torch.autograd.forward_ad,
    "_is_functional_tensor": torch,
    "_is_zerotensor": torch.zeros(1),
    "_vmapmode_increment_nesting": torch._C,
    "_vmapmode_decrement_nesting": torch._C,
    "_disable_current_modes": torch.utils._python_dispatch,
    "_disable_dynamo": torch,
    "_active_ddp_module": nn.parallel.DistributedDataParallel,
    "_is_replica": nn.Linear(1, 1)._replicate_for_data_parallel(),  # type: ignore[no-untyped-call]
    "peek_interpreter_stack": torch._C._functorch,
    "NonDynamicallyQuantizableLinear": nn.modules.linear,
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_torch_still_has_it(name: str) -> None:
    assert hasattr(ATTRIBUTES[name], name), f"torch {torch.__version__} has no {name} any more: see _torch"


@pytest.mark.parametrize("name", CHECKPOINT_CODES)
def test_the_code_of_torchs_checkpoints_is_found(name: str) -> None:
    assert CHECKPOINT_CODES[name] is not None, f"torch {torch.__version__} has no {name} any more: see _torch"


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_a_compiled_module_still_names_the_one_inside() -> None:
    assert "_orig_mod" in torch.compile(nn.Linear(1, 1))._modules  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_a_constant_is_marked_as_torch_does() -> None:
    assert torch.compiler.assume_constant_result(lambda: True)._dynamo_marked_constant  # type: ignore[attr-defined]
    assert torch.compiler.disable(lambda: True)._torchdynamo_disable


def test_ddp_still_puts_dtensors_in_place_by_this_function() -> None:
    ddp = pytest.importorskip("torch.distributed.tensor.parallel.ddp")
    assert {name for name in PUTS_PARTS if callable(getattr(ddp, name))} == PUTS_PARTS


def test_what_they_say() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert not modes.sees_operations()
    with FakeTensorMode():
        assert modes.sees_operations()
    assert not modes.in_transform()
    seen = []
    torch.func.vmap(lambda x: seen.append(modes.in_transform()) or x)(torch.zeros(2))  # type: ignore[func-returns-value]
    assert seen == [True]
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda grad: seen.append(modes.in_backward()))
    assert not modes.in_backward()
    x.sum().backward()
    assert seen == [True, True]


@pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"), reason="torch 2.6 and before do not tell"
)
def test_hooks_around_are_found() -> None:
    assert modes.saved_tensors_hooks_around() is None

    def unpack(packed: Tensor) -> Tensor:
        return packed

    with saved_tensors_hooks(lambda tensor: tensor, unpack):
        around = modes.saved_tensors_hooks_around()
        assert around is not None
        assert around[1] is unpack


def test_a_long_seed_fills_the_words_of_the_generators_state() -> None:
    generator = torch.default_generator
    for seed in (5, 2**32 - 1):
        seed_cpu(seed)
        state = generator.get_state()
        generator.manual_seed(seed)
        assert torch.equal(state, generator.get_state())
    seed_cpu(2**62 + 5)
    assert generator.initial_seed() == 2**62 + 5
    state = generator.get_state()
    words = state[24 : 24 + 8 * 624].view(torch.int64)
    assert bool((words >= 0).all())
    assert bool((words < 2**32).all())
    assert words.unique().numel() == 624
    generator.manual_seed(2**62 + 5)  # All the rest of the state is as torch leaves it.
    rest = generator.get_state()
    rest[24 : 24 + 8 * 624] = state[24 : 24 + 8 * 624]
    assert torch.equal(rest, state)


def test_they_are_used_in_one_folder() -> None:
    for path in ROOT.rglob("*.py"):
        if path.parent.name != "_torch":
            assert not re.search(r"torch\._C\b|_conv_forward\(", path.read_text()), path.name


def test_what_dynamo_says_of_the_functions_that_it_traces() -> None:
    from torch._dynamo import exc, symbolic_convert

    assert issubclass(exc.SkipFrame, Exception)
    assert issubclass(exc.UnspecializeRestartAnalysis, exc.RestartAnalysis)
    assert issubclass(symbolic_convert.InliningInstructionTranslator, symbolic_convert.InstructionTranslatorBase)
