"""One range for the layers of a group, from the data: when it is set, and how it goes with the model."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn
from weightnoise._cli.notation import read_spec

RANGE, COUNT = "0.activation_noise.input.range", "0.activation_noise.input.batches"
LAYERS = (0, 2, 4)


def plain(size: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, size), nn.Tanh(), nn.Linear(size, size))


def noisy(size: int = 8, **options: Any) -> nn.Sequential:
    law = wn.Converter(6, **{"range": "max", "group": "dac", "batches": 2, **options})
    return wn.add_activation_noise(plain(size), law, at="input")


def batches(count: int, size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [(1.0 + place) * torch.randn(6, size, generator=generator) for place in range(count)]


def shared(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The range and the count, which all layers must have."""
    states = [model.get_submodule(f"{place}.activation_noise.input") for place in LAYERS]
    assert len({id(state.range) for state in states}) == len({id(state.batches) for state in states}) == 1
    found, count = states[0].range, states[0].batches
    assert isinstance(found, Tensor)
    assert isinstance(count, Tensor)
    return found, count


def by_hand(x: Tensor, asked: list[Tensor], law: wn.Converter, more: bool) -> Tensor:
    """The output of the plain model, layer by layer; ``asked`` are the ranges that were asked for so far."""
    for layer in plain(x.shape[-1]):
        if isinstance(layer, nn.Linear):
            if more:
                asked.append(law.measured(x).flatten())
            each = torch.stack(asked)
            top = each.max() if law.range == "max" else each.mean()
            x = wn.Converter(6, range=top.item()).apply(x, None, 1.0)
        x = layer(x)
    return x


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("method", ["max", "std", "quantile"])
def test_the_first_batches_of_all_layers_set_the_range(size: int, learned: bool, method: Any) -> None:
    model = noisy(size, range=method, learned=learned, quantile=0.9)
    law = wn.Converter(6, range=method, quantile=0.9)
    asked: list[Tensor] = []
    for place, x in enumerate(batches(4, size)):
        expected = by_hand(x, asked, law, more=place < 2)
        assert_close(model(x), expected)
        found, count = shared(model)
        each = torch.stack(asked)
        assert_close(found.detach(), (each.max() if method == "max" else each.mean()).reshape(1))
        assert count.item() == len(asked) == 3 * min(place + 1, 2)
    assert isinstance(found, nn.Parameter) == learned


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("method", [None, "std", "quantile"])
def test_calibration_is_that_of_the_clean_activations_of_all_layers(size: int, learned: bool, method: Any) -> None:
    model, data = noisy(size, learned=learned), batches(3, size)
    found = wn.calibrate_ranges(model, data, method=method)
    law = wn.Converter(6, range=method or "max")
    each = torch.stack([law.measured(plain(size)[:place](x)) for place in LAYERS for x in data])
    assert list(found) == [RANGE]
    assert_close(found[RANGE], (each.max() if method is None else each.mean()).reshape(1))
    assert torch.equal(shared(model)[0].detach(), found[RANGE])
    model(100.0 * data[0])  # For good, in every layer.
    assert torch.equal(shared(model)[0].detach(), found[RANGE])
    with pytest.raises(wn.OptionError, match="has reached the converter on the input of module '2'"):
        wn.calibrate_ranges(model, lambda m: m[0](data[0]))


def test_a_layer_has_the_range_of_another_and_none_without_data() -> None:
    model, (x,) = noisy(), batches(1)
    with pytest.raises(wn.UnsupportedActivationError, match="takes its range from the data and has seen none"):
        model.eval()(x)
    model.train()
    model[0](x)
    rounded = wn.Converter(6, range=x.abs().max().item()).apply(x, None, 1.0)
    assert_close(model.eval()[2](x), plain()[2](rounded))


def _loaded(model: nn.Module, other: nn.Module, **options: bool) -> nn.Module:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file), **options)
    return other


WAYS: dict[str, Callable[[nn.Module, bool], nn.Module]] = {
    "deepcopy": lambda model, learned: copy.deepcopy(model),
    "pickle": lambda model, learned: pickle.loads(pickle.dumps(model)),
    "double and back": lambda model, learned: copy.deepcopy(model).double().float(),
    "checkpoint": lambda model, learned: _loaded(model, noisy(learned=learned)),
    "assigned": lambda model, learned: _loaded(model, noisy(learned=learned), assign=True),
    "emptied": lambda model, learned: _loaded(model, noisy(learned=learned).to("meta").to_empty(device="cpu")),
    "assigned to meta": lambda model, learned: _loaded(model, noisy(learned=learned).to("meta"), assign=True),
    "made on meta": lambda model, learned: _loaded(
        model,
        wn.add_activation_noise(
            plain().to("meta"),
            wn.Converter(6, range="max", group="dac", batches=2, learned=learned),
            at="input",
        ),
        assign=True,
    ),
}


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_group_goes_on_as_one_in_copies_and_checkpoints(way: str, learned: bool) -> None:
    model, data = noisy(learned=learned), batches(3)
    model(data[0])
    other = WAYS[way](model, learned)
    assert [name for name in model.state_dict() if "activation_noise" in name] == [RANGE, COUNT]
    assert list(other.state_dict()) == list(model.state_dict())
    assert_close(dict(other.state_dict()), dict(model.state_dict()))
    before = shared(other)[0].item()
    assert shared(other)[1].item() == 3
    for x in data[1:]:
        assert_close(other(x), model(x))
    assert shared(other)[0].item() == shared(model)[0].item() > before
    assert shared(other)[1].item() == 6
    assert shared(other)[0] is not shared(model)[0]


@pytest.mark.parametrize("learned", [False, True])
def test_an_emptied_group_has_no_range(learned: bool) -> None:
    model, data = noisy(learned=learned), batches(2)
    wn.calibrate_ranges(model, data)
    empty = model.to("meta").to_empty(device="cpu")
    assert shared(empty)[0].isnan().all()
    assert shared(empty)[1].item() == 0
    with pytest.raises(wn.UnsupportedActivationError, match="has seen none"):
        empty.eval()(data[0])


@pytest.mark.parametrize("learned", [False, True])
def test_a_functional_call_sets_the_range_that_it_is_given(learned: bool) -> None:
    model, (x,) = noisy(learned=learned), batches(1)
    given = {name: one.detach().clone() for name, one in [*model.named_parameters(), *model.named_buffers()]}
    torch.func.functional_call(model, given, (x,))
    assert (given[COUNT].item(), shared(model)[1].item()) == (3, 0)
    model(x)
    assert torch.equal(given[RANGE], shared(model)[0].detach())


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputation_sets_nothing(reentrant: bool) -> None:
    gradients = []
    for wrapped in (False, True):
        model = noisy(learned=True, batches=1)
        losses = []
        for x in batches(2):
            x.requires_grad_()
            y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant) if wrapped else model(x)
            losses.append(y.square().sum())
        before = shared(model)[0].detach().clone()
        sum(losses).backward()  # type: ignore[union-attr]
        assert torch.equal(shared(model)[0].detach(), before)
        assert shared(model)[1].item() == 3
        gradients.append([p.grad for p in model.parameters()])
    assert_close(gradients[1], gradients[0])


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("learned", [False, True])
def test_compiled_code_sets_and_follows_the_range(learned: bool) -> None:
    model, eager = noisy(learned=learned), noisy(learned=learned)
    compiled = torch.compile(model, backend="aot_eager")
    for x in batches(4):
        assert_close(compiled(x), eager(x))
        assert_close(shared(model), shared(eager))
    torch.compiler.reset()
    wn.calibrate_ranges(model, batches(1))
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_close(whole(batches(2)[1]), model(batches(2)[1]))


def test_configurations_notations_and_plans() -> None:
    law = wn.Converter(6, range="quantile", learned=True, group="dac", batches=3, decay=0.01, decay_below=0.02)
    spec = {"0": law, "2": law}
    assert wn.spec_from_config(wn.spec_to_config(spec)) == spec
    assert read_spec(repr(law)) == law
    model = plain()
    assert str(wn.plan_activation_noise(model, spec, at="input")).count("group='dac'") == 2
    with pytest.raises(wn.UnsupportedActivationError, match="have one range"):
        wn.plan_activation_noise(model, {"0": law, "2": replace(law, k=2.0)}, at="input")
    assert list(model.state_dict()) == list(plain().state_dict())


def test_a_group_that_has_lost_a_layer_waits_for_the_others_alone() -> None:
    model, data = noisy(batches=1), batches(2)
    wn.remove_activation_noise(model[4])
    model(data[0])
    before = model.state_dict()[RANGE].clone()
    model(100.0 * data[1])
    assert torch.equal(model.state_dict()[RANGE], before)
    assert model.state_dict()[COUNT].item() == 2


def test_removal_leaves_the_plain_model() -> None:
    model = wn.remove_activation_noise(noisy())
    assert list(model.state_dict()) == list(plain().state_dict())


def test_codes_of_a_group_may_differ() -> None:
    laws = {"0": wn.Converter(8, range="max", group="a"), "2": wn.Converter(4, range="max", group="a")}
    model = wn.add_activation_noise(plain(), laws, at="input")
    (x,) = batches(1)
    assert list(wn.calibrate_ranges(model, [x])) == [RANGE]
