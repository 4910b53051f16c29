"""A learned clipping bound: its first value, its gradients, its key, and that it learns."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import weightnoise as wn
from weightnoise._cli.notation import read_spec

SIZES = [8, 64]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("per", "shape"), [("tensor", (1, 1)), ("output", (-1, 1)), ("input", (1, -1)), (1, (1, -1))]
)
@pytest.mark.parametrize("scaled", [False, True])
def test_it_begins_as_clip_and_shares_the_gradient(
    size: int, per: Any, shape: tuple[int, int], scaled: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(size, size, bias=False)
    weight = model.weight.detach().clone()
    expected = wn.Clip(1.0, per={"output": 0, "input": 1}.get(per, per)).apply(weight, None, 1.0)
    wn.add_weight_noise(model, wn.LearnedClip(1.0, per=per, scaled=scaled))
    (bound,) = wn.learned_strengths(model).values()
    assert bound.shape == tuple(size if one == -1 else one for one in shape)
    upstream = torch.randn(size, size)
    y = model(torch.eye(size)).T
    assert_close(y, expected)
    (y * upstream).sum().backward()
    outside = weight.abs() > bound.detach()
    assert 0 < outside.sum() < outside.numel()
    assert model.weight.grad is not None
    assert bound.grad is not None
    assert_close(model.weight.grad, torch.where(outside, 0.0, upstream))
    dims = [dim for dim in (0, 1) if bound.shape[dim] == 1]
    of_bound = (torch.where(outside, upstream * weight.sign(), 0.0)).sum(dim=dims, keepdim=True)
    assert_close(bound.grad, of_bound / (math.sqrt(weight.numel() / bound.numel()) if scaled else 1.0))


@pytest.mark.parametrize("size", SIZES)
def test_the_bound_learns_to_be_where_the_loss_wants_it(size: int) -> None:
    torch.manual_seed(0)
    model = wn.add_weight_noise(nn.Linear(size, size, bias=False), [wn.LearnedClip(1.0), wn.Gaussian(1e-4)])
    nn.init.normal_(model.weight)
    (bound,) = wn.learned_strengths(model).values()
    assert list(wn.learned_strengths(model)) == ["parametrizations.weight.0.bound_0"]
    target = model.weight.detach().clamp(-0.5, 0.5).T
    optimizer = torch.optim.Adam([bound], lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        (model(torch.eye(size)) - target).square().mean().backward()
        optimizer.step()
    assert bound.abs().item() == pytest.approx(0.5, abs=0.02)


def test_equal_weights_are_not_cut() -> None:
    for value in (0.0, 0.3):
        model = nn.Linear(8, 8, bias=False)
        nn.init.constant_(model.weight, value)
        wn.add_weight_noise(model, wn.LearnedClip())
        assert_close(model(torch.eye(8)), torch.full((8, 8), value))


@pytest.mark.parametrize("law", [wn.LearnedClip(2.0), wn.LearnedClip(per="output", scaled=True)], ids=repr)
def test_configs_and_the_command_line(law: wn.LearnedClip) -> None:
    assert wn.spec_from_config(json.loads(json.dumps(wn.spec_to_config(law)))) == law
    assert read_spec(repr(law)) == law


def test_refused_aloud() -> None:
    for make, text in (
        (lambda: wn.LearnedClip(0), "k must be positive"),
        (lambda: wn.LearnedClip(-1.0), r"k=...\) must be a finite number >= 0"),
        (lambda: wn.LearnedClip(per="row"), r"per=...\) must be 'tensor'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(wn.OptionError, match=text):
            make()
    with pytest.raises(wn.UnsupportedParameterError, match="'weight': per='output' is no dimension of a layer"):
        wn.add_weight_noise(nn.ConvTranspose1d(4, 4, 2, groups=2), wn.LearnedClip(per="output"))
