"""WeightNoiseCallback in the real Trainer of Transformers, and what else its models do, on a tiny GPT-2."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.cases import needs_torch
from tests.helpers import seen

transformers = pytest.importorskip("transformers", reason="needs the extra 'transformers'")
pytest.importorskip("accelerate", reason="the Trainer needs accelerate")

from weightnoise.integrations.transformers import WeightNoiseCallback  # noqa: E402

IDS = torch.arange(8).reshape(1, 8)
SPEC = wn.Gaussian(0.1)


def make(**options: Any) -> Any:
    given = {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, **options}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 31}
    config = transformers.GPT2Config(**given, **off)
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config)


class Examples(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = (torch.arange(8) * (index + 1)) % 32
        return {"input_ids": ids, "labels": ids}


class Watch(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    """Remembers whether noise was on at the end of training and of prediction steps, and ends a run early."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.seen: dict[str, list[bool]] = {"train": [], "predict": []}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen["train"].append(is_on(kwargs["model"]))
        if state.global_step == self.stop:
            control.should_training_stop = True

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen["predict"].append(is_on(kwargs["model"]))


def is_on(model: Any) -> bool:
    return not isinstance(seen(model.transformer.h[0].attn.c_attn), nn.Parameter)


def trainer(folder: Path, model: Any, *callbacks: Any, **options: Any) -> Any:
    given = {"max_steps": 6, "save_strategy": "no", "learning_rate": 0.01, **options}
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no"}
    arguments = transformers.TrainingArguments(str(folder), per_device_train_batch_size=2, **quiet, **given)
    return transformers.Trainer(
        model, arguments, train_dataset=Examples(), eval_dataset=Examples(), callbacks=list(callbacks)
    )


def test_noise_is_on_in_training_alone_and_gone_afterwards(tmp_path: Path) -> None:
    model, watch = make(), Watch()
    run = trainer(tmp_path, model, WeightNoiseCallback(SPEC), watch, eval_strategy="steps", eval_steps=3)
    run.train()
    assert watch.seen["train"] == [True] * 6
    assert set(watch.seen["predict"]) == {False}
    assert not wn.has_weight_noise(model)
    assert list(model.state_dict()) == list(make().state_dict())


def test_noise_in_evaluation_is_an_option(tmp_path: Path) -> None:
    watch = Watch()
    run = trainer(tmp_path, make(), WeightNoiseCallback(SPEC, when="always"), watch)
    run.evaluate()
    assert set(watch.seen["predict"]) == {True}


@needs_torch("2.6", "Transformers refuses to load an optimizer's state with it")
def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    def run(folder: str, stop: int | None = None, resume: bool = False) -> Any:
        callback = WeightNoiseCallback(SPEC, fn=wn.linear_ramp(6))
        options = {"save_strategy": "steps", "save_steps": 3}
        model = make()
        training = trainer(tmp_path / folder, model, callback, Watch(stop), **options)
        training.train(resume_from_checkpoint=resume)
        assert callback.schedule is not None
        assert callback.schedule.steps == (stop or 6)
        return model.state_dict()

    uninterrupted = run("one")
    run("two", stop=3)
    torch.manual_seed(99)
    resumed = run("two", resume=True)
    assert all(torch.equal(resumed[name], value) for name, value in uninterrupted.items())
    # A checkpoint of a noisy run is one of the plain model.
    plain, info = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "two/checkpoint-6", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in resumed.items())


def test_learned_strengths_are_trained_or_refused(tmp_path: Path) -> None:
    spec: Any = {"*.c_attn.weight": wn.LearnedGaussian(0.1)}
    model = make()
    trainer(tmp_path, model, WeightNoiseCallback(spec, remove=False)).train()
    strengths = wn.learned_strengths(model)
    assert len(strengths) == 2
    assert not any(torch.equal(s, torch.full_like(s, 0.1)) for s in strengths.values())
    model = make()
    late = trainer(tmp_path, model)
    late.add_callback(WeightNoiseCallback(spec))
    with pytest.raises(ValueError, match=r"The optimizer does not know .* Trainer\(callbacks="):
        late.train()
    assert not wn.has_weight_noise(model)


def test_a_callback_that_comes_late_adds_its_noise_then(tmp_path: Path) -> None:
    watch = Watch()
    late = trainer(tmp_path, make(), watch)
    late.add_callback(WeightNoiseCallback(SPEC))
    late.train()
    assert watch.seen["train"] == [True] * 6


def test_a_model_with_noise_of_its_own_keeps_it(tmp_path: Path) -> None:
    model = wn.add_weight_noise(make(), SPEC)
    trainer(tmp_path, model, WeightNoiseCallback(fn=wn.linear_ramp(6))).train()
    assert wn.has_weight_noise(model)
    with pytest.raises(wn.AlreadyNoisyError):
        trainer(tmp_path, model, WeightNoiseCallback(SPEC))
    with pytest.raises(wn.NotNoisyError, match="has no spec"):
        trainer(tmp_path, make(), WeightNoiseCallback())


def test_robustness_at_the_end_of_the_training(tmp_path: Path) -> None:
    def metric(model: Any) -> float:
        with torch.no_grad():
            return float(model(input_ids=IDS, labels=IDS).loss)

    said: list[Any] = []
    log = lambda *one: said.append(one)  # noqa: E731
    callback = WeightNoiseCallback(SPEC, fn=lambda step: 1.0, metric=metric, levels=[0.0, 1.0], draws=4, log=log)
    model = make()
    trainer(tmp_path, model, callback).train()
    assert callback.report is not None
    last, *_ = (place for place, one in enumerate(said) if one[0].startswith("robustness/"))
    assert [one[0] for one in said[:last]] == ["noise/factor"] * last
    assert [one[1] for one in said[last:]] == callback.report.mean.tolist()
    model.eval()
    by_hand = wn.evaluate_robustness(model, metric, levels=[0.0, 1.0], law=SPEC, draws=4, progress=False)
    torch.testing.assert_close(callback.report.values, by_hand.values)
    with pytest.raises(ValueError, match=r"needs levels=\[\.\.\.\]"):
        WeightNoiseCallback(SPEC, metric=metric)


@pytest.mark.parametrize("on", [True, False])
def test_save_and_load(on: bool, tmp_path: Path) -> None:
    model = wn.add_weight_noise(make(), SPEC)
    if on:
        model.save_pretrained(tmp_path)
    else:
        with wn.no_noise(model):
            model.save_pretrained(tmp_path)
    loaded, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    noisy = wn.add_weight_noise(make(), SPEC)
    noisy.load_state_dict(loaded.state_dict(), strict=True)


def test_tied_embeddings_are_one_parameter_with_two_draws() -> None:
    model = wn.add_weight_noise(make(), SPEC)
    assert model.lm_head._parameters["weight"] is model.transformer.wte._parameters["weight"]
    assert not torch.equal(seen(model.lm_head), seen(model.transformer.wte))
    with wn.hold_noise(model):
        assert torch.equal(model.lm_head.weight, model.transformer.wte.weight)
    with pytest.raises(wn.TiedParameterError):
        wn.add_weight_noise(make(), {"lm_head.weight": SPEC})


def test_generate() -> None:
    plain, model = make().eval(), wn.add_weight_noise(make().eval(), wn.Gaussian(0.5))
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
    with wn.no_noise(model):
        assert torch.equal(model.generate(IDS, **options), plain.generate(IDS, **options))
    with wn.hold_noise(model, seed=1):  # One draw for all tokens: one chip.
        first, second = (model.generate(IDS, **options, use_cache=cached) for cached in (True, False))
    assert torch.equal(first, second)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    found = []
    for checkpointing in (False, True):
        model = wn.add_weight_noise(make(), SPEC).train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        torch.manual_seed(5)
        model(input_ids=IDS, labels=IDS).loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_resizing_reads_the_clean_rows(inside: bool, tied: bool) -> None:
    plain = make(tie_word_embeddings=tied)
    model = wn.add_weight_noise(make(tie_word_embeddings=tied), SPEC)
    for each in (plain, model):
        torch.manual_seed(3)
        with wn.no_noise(*([each] if inside else [])):
            each.resize_token_embeddings(40, mean_resizing=False)
            each.tie_weights()
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in model.state_dict().items())
    assert list(model.state_dict()) == list(plain.state_dict())
    assert ("lm_head.weight" in wn.noisy_parameters(model)) is tied


@pytest.mark.parametrize("inside", [True, False])
def test_tying_keeps_names_and_noise(inside: bool) -> None:
    model = wn.add_weight_noise(make(), SPEC)
    names = list(wn.noisy_parameters(model))
    with wn.no_noise(*([model] if inside else [])):
        model.tie_weights()
    assert list(wn.noisy_parameters(model)) == names
    assert model.lm_head._parameters["weight"] is model.transformer.wte._parameters["weight"]


def test_auto_classes_of_other_families(tmp_path: Path) -> None:
    bert = transformers.BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    t5 = transformers.T5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    llama = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    for number, (kind, config) in enumerate(
        [
            (transformers.BertForMaskedLM, bert),
            (transformers.T5ForConditionalGeneration, t5),
            (transformers.LlamaForCausalLM, llama),
        ]
    ):
        model = wn.add_weight_noise(kind(config), SPEC)
        model(input_ids=IDS, labels=IDS).loss.backward()
        assert all(
            parameter.grad is not None for name, parameter in model.named_parameters() if "bias" not in name
        )
        model.save_pretrained(tmp_path / str(number))
        loaded, info = kind.from_pretrained(tmp_path / str(number), output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


def test_the_code_in_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs/integrations.md").read_text()
    blocks = re.findall(
        r"```py\n(.*?)```", page.partition("## Transformers")[2].partition("## PEFT")[0], re.DOTALL
    )
    assert len(blocks) == 3
    model = make()
    arguments = trainer(tmp_path, model).args
    names: dict[str, Any] = {"model": model, "arguments": arguments, "dataset": Examples(), "ids": IDS}
    exec(blocks[0], names)
    assert not wn.has_weight_noise(model)
    wn.add_weight_noise(model, SPEC)
    for block in blocks[1:]:
        exec(block, names)
    assert model.lm_head.weight.shape == (40, 16)
    assert wn.has_weight_noise(model)


def test_tied_embeddings_that_learn_are_saved(tmp_path: Path) -> None:
    model, fresh = (wn.add_weight_noise(make(), wn.LearnedGaussian(std)) for std in (0.1, 0.2))
    model.save_pretrained(tmp_path)
    state = importlib.import_module("safetensors.torch").load_file(tmp_path / "model.safetensors")
    assert fresh.load_state_dict(state, strict=False).missing_keys == ["lm_head.weight"]
    learned = wn.learned_strengths(model)
    assert all(torch.equal(value, learned[name]) for name, value in wn.learned_strengths(fresh).items())
