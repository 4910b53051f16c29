"""Real pretrained models: noise in one call, measured, removed without a trace, exported."""

from __future__ import annotations

import copy
import functools
import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn
from tests.pretrained.__main__ import main
from tests.pretrained.packages import missing
from tests.pretrained.task import Task
from tests.pretrained.tasks import TASKS

pytestmark = [
    pytest.mark.pretrained,
    pytest.mark.skipif(bool(missing()), reason="the extra 'pretrained' is not installed"),
]

LAW = wn.Gaussian(0.2, relative_to="std")
LEVELS = (0.0, 0.3, 0.6, 1.0)
DRAWS = 3


@dataclass(frozen=True)
class Expected:
    """What was measured once, and how much of it may differ.

    Attributes:
        clean: accuracy without noise. Another processor may round a tie another way: one example in a hundred.
        noisy: mean accuracy at the levels after the first.
        deviation: the standard deviation of the accuracy between draws, at its largest.
    """

    clean: float
    noisy: tuple[float, ...]
    deviation: float


# With 40 draws for the faces and 20 for the others.
EXPECTED = {
    "faces": Expected(1.0, (0.995, 0.913, 0.678), 0.152),
    "pronunciation": Expected(0.701, (0.429, 0.085, 0.001), 0.019),
    "topics": Expected(0.923, (0.878, 0.649, 0.370), 0.042),
}

# torch says so of a plain GRU as well, whose list of weights its exporter replaces for a while.
EXPORTS = pytest.mark.filterwarnings(
    "ignore:The tensor attributes self:UserWarning",
    # torch 2.5.
    "ignore:(Attempted to insert a get_attr Node|Node .* does not reference an nn.Module):UserWarning",
)


@functools.cache
def loaded(name: str) -> Task:
    """What takes seconds; no test changes it."""
    return TASKS[name]()


def fresh(name: str) -> Task:
    """One whose model a test may change."""
    task = loaded(name)
    return Task(copy.deepcopy(task.model), task.inputs, task.correct)


@pytest.fixture(params=list(EXPECTED))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def task(name: str) -> Task:
    return fresh(name)


def few(task: Task) -> tuple[Tensor, ...]:
    """The first examples."""
    return tuple(value[:4] for value in task.inputs)


@torch.no_grad()
def output(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return model(*inputs)


def test_the_clean_accuracy_is_that_of_a_trained_model(name: str, task: Task) -> None:
    assert abs(task.accuracy(task.model) - EXPECTED[name].clean) <= 0.01


def test_one_call_puts_noise_on_every_matrix(task: Task) -> None:
    matrices = [name for name, p in task.model.named_parameters() if p.ndim >= 2]
    clean = output(task.model, few(task))
    noisy = wn.add_weight_noise(task.model, LAW)
    assert noisy is task.model
    assert list(wn.noisy_parameters(noisy)) == matrices
    assert not torch.equal(output(noisy, few(task)), output(noisy, few(task)))
    with wn.no_noise(noisy):
        assert torch.equal(output(noisy, few(task)), clean)


def test_a_held_draw_is_one_chip_and_its_seed_brings_it_back(task: Task) -> None:
    noisy = wn.add_weight_noise(task.model, LAW)
    with wn.hold_noise(noisy, seed=1):
        first, again = output(noisy, few(task)), output(noisy, few(task))
    with wn.hold_noise(noisy, seed=1):
        later = output(noisy, few(task))
    with wn.hold_noise(noisy, seed=2):
        other = output(noisy, few(task))
    assert torch.equal(first, again)
    assert torch.equal(first, later)
    assert not torch.equal(first, other)


def test_accuracy_falls_with_the_noise(name: str, task: Task) -> None:
    clean = task.accuracy(task.model)
    before = copy.deepcopy(task.model.state_dict())
    law = wn.Gaussian(1.0, relative_to="std")
    report = wn.evaluate_robustness(task.model, task.accuracy, levels=LEVELS, law=law, draws=DRAWS, progress=False)
    means = report.mean.tolist()
    assert report.values[0].tolist() == [clean] * DRAWS
    assert all(lower < higher for higher, lower in itertools.pairwise(means)), means
    # Two means of as many draws differ by less 99.9 % of the time; 0.01 is for ties, as above.
    tolerance = 3.3 * EXPECTED[name].deviation * (2 / DRAWS) ** 0.5 + 0.01
    for found, expected in zip(means[1:], EXPECTED[name].noisy, strict=True):
        assert abs(found - expected) <= tolerance, report.to_markdown()
    assert not wn.has_weight_noise(task.model)
    assert_same(task.model.state_dict(), before)


def test_a_transformer_with_outliers_wants_a_scale_for_each_output() -> None:
    # In four of its matrices the largest weight is 79 to 175 standard deviations away. Measured with 5 draws: 57 %
    # with one scale for a matrix, 92 % with one for each output; the standard errors are of 1 %.
    task = fresh("topics")
    laws = {
        "one scale": wn.Gaussian(1.0, relative_to="absmax"),
        "one for each output": wn.Gaussian(1.0, relative_to="absmax", per=0),
    }
    report = wn.evaluate_robustness(task.model, task.accuracy, levels=[0.02], laws=laws, draws=2, progress=False)
    assert report["one scale"].mean.item() < 0.7
    assert report["one for each output"].mean.item() > 0.85


def test_removal_leaves_no_trace(task: Task) -> None:
    model = task.model
    clean, plain_class = output(model, task.inputs), type(model)
    before = copy.deepcopy(model.state_dict())
    parameters = dict(model.named_parameters())
    wn.add_weight_noise(model, LAW)
    output(model, few(task))
    assert_same(model.state_dict(), before)
    assert wn.remove_weight_noise(model) is model
    assert type(model) is plain_class
    assert_same(model.state_dict(), before)
    assert [(key, id(p)) for key, p in model.named_parameters()] == [(key, id(p)) for key, p in parameters.items()]
    assert torch.equal(output(model, task.inputs), clean)


@EXPORTS
def test_noise_ends_up_in_no_exported_program(task: Task) -> None:
    inputs = few(task)
    clean = output(task.model, inputs)
    plain = torch.export.export(task.model, inputs, strict=False)
    noisy = wn.add_weight_noise(task.model, LAW)
    with pytest.raises(wn.ExportError):
        torch.export.export(noisy, inputs, strict=False)
    with wn.no_noise(noisy):
        switched_off = torch.export.export(noisy, inputs, strict=False)
    removed = torch.export.export(wn.remove_weight_noise(noisy), inputs, strict=False)
    for program in (plain, switched_off, removed):
        assert_close(output(program.module(), inputs), clean)


@EXPORTS
def test_one_chip_is_exported_with_its_noise(task: Task) -> None:
    inputs = few(task)
    clean = output(task.model, inputs)
    noisy = wn.add_weight_noise(task.model, LAW)
    with wn.hold_noise(noisy, seed=3):
        chip = output(noisy, inputs)
        wn.remove_weight_noise(noisy, bake=True)
    program = torch.export.export(noisy, inputs, strict=False)
    assert_close(output(program.module(), inputs), chip)
    assert not torch.equal(chip, clean)


def test_the_command_prints_its_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "topics", TASKS["faces"])  # The others take long.
    monkeypatch.setitem(TASKS, "pronunciation", TASKS["faces"])
    assert main(["--draws", "2"]) == 0
    assert "| none | 100.0 | 100.0 | 100.0 |" in capsys.readouterr().out


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal keys and equal bits."""
    assert list(found) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
