"""LoRA of PEFT: noise on the frozen base weights, on the adapters, and what merging does."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import weightnoise as wn

peft = pytest.importorskip("peft", reason="needs the extra 'peft'")
transformers = pytest.importorskip("transformers", reason="PEFT needs it")

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

X = torch.linspace(-1, 1, 8).reshape(2, 4)
SPEC = wn.Gaussian(0.3)


def make() -> nn.Sequential:
    torch.manual_seed(0)
    layers = {"first": nn.Linear(4, 8), "tanh": nn.Tanh(), "last": nn.Linear(8, 3)}
    return nn.Sequential(OrderedDict(layers))


def lora(model: nn.Module) -> Any:
    torch.manual_seed(1)
    config = peft.LoraConfig(target_modules=["first", "last"], r=2, init_lora_weights=False)
    return peft.get_peft_model(model, config)


def test_noise_on_the_base_weights_alone() -> None:
    plain, model = lora(make()), lora(make())
    wn.add_weight_noise(model, {"*.base_layer.weight": SPEC})
    assert [name.split("model.model.")[1] for name in wn.noisy_parameters(model)] == [
        "first.base_layer.weight",
        "last.base_layer.weight",
    ]
    assert list(model.state_dict()) == list(plain.state_dict())
    with wn.hold_noise(model, seed=3):
        effective = copy.deepcopy(plain)
        for name in ("first", "last"):
            target = effective.get_submodule(f"base_model.model.{name}.base_layer")
            with torch.no_grad():
                target.weight.copy_(model.get_submodule(f"base_model.model.{name}.base_layer").weight)
        torch.testing.assert_close(model(X), effective(X))
        model(X).square().mean().backward()
        effective(X).square().mean().backward()
    for one, other in zip(model.parameters(), effective.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None) == (not one.requires_grad)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)


def test_noise_on_the_adapters_alone() -> None:
    model = wn.add_weight_noise(lora(make()), {"*.lora_*": SPEC})
    assert len(wn.noisy_parameters(model)) == 4
    assert all(".lora_" in name for name in wn.noisy_parameters(model))
    assert not torch.equal(model(X), model(X))
    with model.disable_adapter():
        assert torch.equal(model(X), make()(X))
    with wn.no_noise(model):
        assert torch.equal(model(X), lora(make())(X))


def test_noise_that_was_there_before_the_adapters() -> None:
    model = lora(wn.add_weight_noise(make(), SPEC))
    plain = lora(make())
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict(), strict=True)  # PEFT looks at the weights, and a look draws.
    assert len(wn.noisy_parameters(model)) == 2
    assert not torch.equal(model(X), model(X))
    with wn.no_noise(model):
        assert torch.equal(model(X), plain(X))
    wn.remove_weight_noise(model)
    assert torch.equal(model(X), plain(X))


def test_training_changes_the_adapters_alone_and_saves_them(tmp_path: Path) -> None:
    model = wn.add_weight_noise(lora(make()), {"*.base_layer.weight": SPEC})
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1)
    model(X).square().mean().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make(), tmp_path)
    with wn.no_noise(model):
        assert torch.equal(loaded(X), model(X))


@pytest.mark.parametrize("spec", [SPEC, {"*.base_layer.weight": SPEC}, {"*.lora_*": SPEC}])
def test_merging_after_removal_inside_no_noise_and_with_noise_on(spec: Any) -> None:
    plain = lora(make())
    expected = plain.merge_and_unload().state_dict()
    removed = wn.remove_weight_noise(wn.add_weight_noise(lora(make()), spec)).merge_and_unload()
    assert all(torch.equal(removed.state_dict()[name], value) for name, value in expected.items())
    for inside in (True, False):
        model = wn.add_weight_noise(lora(make()), spec)
        with wn.no_noise(*([model] if inside else [])):
            merged = model.merge_and_unload()
        assert all(torch.equal(merged.state_dict()[name], value) for name, value in expected.items())


@pytest.mark.parametrize("inside", [True, False])
def test_unmerging_gives_the_weights_back(inside: bool) -> None:
    model = wn.add_weight_noise(lora(make()), {"*.base_layer.weight": SPEC})
    before = copy.deepcopy(model.state_dict())
    with wn.no_noise(*([model] if inside else [])):
        model.merge_adapter()
        name = next(name for name in before if name.endswith("base_layer.weight"))
        assert not torch.equal(model.state_dict()[name], before[name])
        model.unmerge_adapter()
    assert all(torch.allclose(value, before[name], atol=1e-6) for name, value in model.state_dict().items())


def test_lora_on_a_transformer() -> None:
    config = transformers.GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    ids = torch.arange(8).reshape(1, 8)
    model = peft.get_peft_model(
        transformers.GPT2LMHeadModel(config), peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    )
    wn.add_weight_noise(model, {"*.base_layer.weight": SPEC, "*.lora_*": wn.Gaussian(0.1)})
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert gradients
    assert all("lora_" in name for name in gradients)


def test_the_code_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs/integrations.md").read_text()
    code = page.partition("## PEFT")[2].partition("```py\n")[2].partition("```")[0]
    config = transformers.GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    names = {"model": transformers.GPT2LMHeadModel(config), "peft": peft, "wn": wn}
    code = code.replace('["c_attn"]', '["c_attn"], fan_in_fan_out=True')  # Else PEFT warns, and does so itself.
    exec(code, names)
    assert len(wn.noisy_parameters(names["model"])) == 1
