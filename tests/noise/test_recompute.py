"""memory="recompute": the same gradients to the bit, from noisy weights that nothing keeps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.cases import CASES, LAWS, single_loss
from weightnoise.testing import assert_restores

MEMORIES = [("keep", 4), ("recompute", 0)]


def keep_what_it_saves(model: nn.Module) -> None:
    """From now on autograd keeps the noisy weights, of the same draws."""
    for module in model.modules():
        holder: Any = module._modules.get("parametrizations")
        if holder is not None and hasattr(holder, "module_noise"):
            holder.module_noise.recomputes = False


def gradients(model: Any, x: Tensor, passes: int = 1) -> list[Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    # All forwards before the backward.
    torch.stack([single_loss(model, x) for _ in range(passes)]).sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def layers(law: Any = 0.1, *, memory: Any = "recompute", width: int = 160) -> Any:
    """Four layers, wide enough for the fast generator."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(4)))
    return wn.add_weight_noise(model, law, memory=memory)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_every_law_has_the_gradients_of_what_is_kept(law: Any, passes: int) -> None:
    case = CASES["mlp"]
    model, x = wn.add_weight_noise(case.model(), law, memory="recompute"), case.batch()
    found = gradients(model, x, passes)
    keep_what_it_saves(model)
    for mine, expected in zip(found, gradients(model, x, passes), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize(
    "law",
    [wn.Gaussian(0.2), wn.Gaussian(0.2, relative_to="std", gradient="exact"), wn.LearnedGaussian(0.2)],
    ids=str,
)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_model_has_the_gradients_of_what_is_kept(case: Any, law: Any) -> None:
    model, x = wn.add_weight_noise(case.model(), law, memory="recompute"), case.batch()
    found = gradients(model, x)
    keep_what_it_saves(model)
    for mine, expected in zip(found, gradients(model, x), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize(
    "law", [wn.Gaussian(0.1), *[wn.Gaussian(0.1, relative_to="std", per=dim) for dim in (0, 1)]], ids=str
)
def test_fused_noise_is_that_of_keeping(law: Any) -> None:
    x = torch.randn(5, 160)
    kept, made = (gradients(layers(law, memory=memory), x) for memory, _ in MEMORIES)
    for one, other in zip(kept, made, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("memory", "expected"), MEMORIES)
@pytest.mark.parametrize(
    "law", [wn.Gaussian(0.1), wn.Uniform(0.1), wn.Gaussian(0.1, relative_to="value"), wn.DropConnect(0.5)], ids=str
)
def test_nothing_keeps_the_noisy_weights(law: Any, memory: Any, expected: int) -> None:
    model, x = layers(law, memory=memory), torch.randn(3, 160, requires_grad=True)
    clean = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen = []

    def pack(tensor: Tensor) -> Tensor:
        # By a storage: F.linear saves the transposed weight.
        address = tensor.untyped_storage().data_ptr()
        if tensor.numel() == 160 * 160 and tensor.is_floating_point() and address not in clean:
            seen.append(address)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x).sum().backward()
    assert (len(seen) >= expected) if expected else not seen


@pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"), reason="torch 2.6 and before do not tell"
)
def test_hooks_around_it_get_all_other_tensors() -> None:
    packed = []

    def pack(tensor: Tensor) -> tuple[Tensor]:
        packed.append(tensor.shape)
        return (tensor.clone(),)

    model, x = layers(), torch.randn(3, 160)
    expected = gradients(model, x)
    torch.manual_seed(1)
    model.zero_grad()
    with saved_tensors_hooks(pack, lambda box: box[0]):
        loss = single_loss(model, x)
    loss.backward()
    assert packed.count(torch.Size((3, 160))) >= 4
    for mine, parameter in zip(expected, model.parameters(), strict=True):
        assert torch.equal(mine, parameter.grad)


@pytest.mark.parametrize(
    "law",
    [
        *[wn.Gaussian(0.2, relative_to="std", per=per, gradient="exact") for per in ("tensor", 0, 1)],
        wn.Gaussian(0.2, relative_to="std", tile=(200, 200), gradient="exact"),
        wn.LogNormal(0.2, gradient="exact"),
        wn.Variational(),
        wn.VariationalDropout(),
        wn.SaltAndPepper(0.1),
        wn.Clip(1.0),
    ],
    ids=str,
)
def test_a_large_weight_made_without_a_graph_has_the_same_bits(law: wn.Noise) -> None:
    # From 32,768 weights on statistics and laws take another way, and that must not depend on the graph.
    torch.manual_seed(0)
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256)), law, memory="recompute")
    model(torch.randn(4, 256, requires_grad=True)).square().sum().backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "weight" in name)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("law", [wn.Gaussian(0.1), wn.DropConnect(0.3)], ids=str)
def test_inside_a_checkpoint(law: Any, use_reentrant: bool) -> None:
    model, x = layers(law), torch.randn(3, 160, requires_grad=True)
    expected = gradients(model, x)
    found = gradients(checkpointed(model, use_reentrant), x)
    for mine, other in zip(found, expected, strict=True):
        assert_close(mine, other)


def checkpointed(model: nn.Module, use_reentrant: bool) -> nn.Module:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.inner, x, use_reentrant=use_reentrant)

    return Checkpointed()


def test_double_backward() -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double(), 0.3)
    again = copy.deepcopy(model)
    wn.add_weight_noise(wn.remove_weight_noise(again), 0.3, memory="recompute")
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for one in (model, again):
        with wn.hold_noise(one, seed=0):
            assert torch.autograd.gradgradcheck(one, (x,))
    found = []
    for kept in (False, True):
        if kept:
            keep_what_it_saves(again)
        torch.manual_seed(2)
        (slope,) = torch.autograd.grad(again(x).pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), list(again.parameters()), allow_unused=True))
    for mine, expected in zip(*found, strict=True):
        assert (mine is None and expected is None) or torch.equal(mine, expected)


def test_two_backwards_through_one_graph() -> None:
    model, x = layers(), torch.randn(3, 160)
    loss = single_loss(model, x)
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "inside",
    [
        lambda model: wn.hold_noise(model, seed=1, sign=-1),
        lambda model: wn.scale_noise(model, 2.0),
        lambda model: wn.no_noise(model),
    ],
    ids=["hold", "scale", "off"],
)
def test_in_contexts(inside: Any) -> None:
    model, x = layers(), torch.randn(3, 160)
    with inside(model):
        found = gradients(model, x)
        keep_what_it_saves(model)
        for mine, expected in zip(found, gradients(model, x), strict=True):
            assert torch.equal(mine, expected)


def test_the_factor_of_the_forward_counts() -> None:
    model, x = layers(), torch.randn(3, 160)
    torch.manual_seed(1)
    with wn.scale_noise(model, 3.0):
        loss = single_loss(model, x)
    loss.backward()  # Outside of the context.
    found = [parameter.grad.clone() for parameter in model.parameters()]
    with wn.scale_noise(model, 3.0):
        for mine, expected in zip(found, gradients(model, x), strict=True):
            assert torch.equal(mine, expected)


def test_a_weight_that_changed_before_the_backward_is_an_error() -> None:
    model, x = layers(), torch.randn(3, 160)
    loss = single_loss(model, x)
    with torch.no_grad():
        model[2]._parameters["weight"].add_(1.0)
    with pytest.raises(RuntimeError, match=r"Parameter '2\.weight' has been changed in place since the forward"):
        loss.backward()


def test_a_weight_read_many_times_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wn.add_weight_noise(nn.LSTM(8, 16), 0.1, memory="recompute")
    made: list[Any] = []
    plain: Any = wn.Gaussian.apply

    def spy(law: Any, weight: Tensor, *rest: Any) -> Any:
        made.append(weight.shape)
        return plain(law, weight, *rest)

    monkeypatch.setattr(wn.Gaussian, "apply", spy)
    y, _ = model(torch.randn(20, 2, 8))
    forward = len(made)
    y.sum().backward()
    assert forward == 2
    assert len(made) - forward <= 4


def test_it_draws_one_key_a_parameter_and_no_more_in_the_backward() -> None:
    model, x = layers(wn.DropConnect(0.3)), torch.randn(3, 160)
    loss = single_loss(model, x)
    state = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.compile
def test_compiled_code_decides_for_itself() -> None:
    model, x = layers(), torch.randn(3, 160)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not torch.equal(compiled(x), compiled(x))


def test_autocast_and_inference() -> None:
    model, x = layers(), torch.randn(3, 160)
    with torch.autocast("cpu", torch.bfloat16):
        model(x).float().sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())
    with torch.inference_mode():
        assert model(x).shape == (3, 160)


def test_copies_have_it_and_it_comes_off() -> None:
    model = layers(width=8)
    for other in (copy.deepcopy(model), model):
        assert "memory='recompute'" in repr(other)
        wn.remove_weight_noise(other)
    assert_restores(model, 0.1)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match=r"memory='recompute'.* goes with estimator='shared', got 'flipout'"):
        wn.add_weight_noise(nn.Linear(3, 3), 0.1, estimator="flipout", memory="recompute")
    with pytest.raises(ValueError, match="must be one of 'keep', 'recompute'"):
        wn.add_weight_noise(nn.Linear(3, 3), 0.1, memory="none")  # type: ignore[arg-type]
