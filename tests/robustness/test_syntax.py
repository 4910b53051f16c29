"""One meaning for one syntax: laws, levels, what the model carries besides, and which draws."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn

SIZES = [8, 64]  # Weights of less than 1024 elements are drawn by torch, others by the engine.
GAUSSIAN = wn.Gaussian(1.0, relative_to="absmax")


def make(size: int = 8, dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, size)).to(dtype)
    return model, torch.randn(4, size, dtype=dtype)


class Total:
    """The sum of the outputs, without gradients."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        return model(self.x).sum().item()


def run(model: nn.Module, x: Tensor, **options: Any) -> wn.RobustnessReport:
    options = {"levels": [0.0, 0.1, 0.3], "draws": 3, "progress": False, **options}
    return wn.evaluate_robustness(model, options.pop("metric", Total(x)), **options)


def expected(model: nn.Module, x: Tensor, spec: Any, factor: float, draw: int) -> float:
    """By hand: one draw of a spec."""
    report_seed = wn.RobustnessReport((0.0,), {"a": torch.zeros(1, draw + 1)}).seed_of(0.0, draw)
    wn.add_weight_noise(model, spec)
    with wn.scale_noise(model, factor), wn.hold_noise(model, seed=report_seed):
        found = Total(x)(model)
    wn.remove_weight_noise(model)
    return found


SPECS: list[Any] = [
    GAUSSIAN,
    0.1,
    [wn.Clip(2.0), GAUSSIAN],
    {"0.*": GAUSSIAN},
    {"0.*": None, "*": GAUSSIAN},
    {nn.Linear: GAUSSIAN},
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_law_is_any_spec(spec: Any, size: int) -> None:
    model, x = make(size)
    for options in ({"law": spec}, {"laws": {"mine": spec}}, {"law": lambda level: spec, "levels": ["all"]}):
        report = run(model, x, **options)
        assert len(report.curves) == 1
        factor = 1.0 if report.levels == ("all",) else 0.3
        assert report.values[-1, 2].item() == expected(model, x, spec, factor, 2)
        assert not wn.has_weight_noise(model)
    assert list(run(model, x, laws={"a": spec, "b": wn.Uniform(1.0)}).curves) == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"law": {"gaussian": GAUSSIAN}}, wn.NoMatchError, "given as laws="),
        ({"law": GAUSSIAN, "laws": {"a": GAUSSIAN}}, wn.SpecError, "not both"),
        ({"laws": GAUSSIAN}, wn.SpecError, "must be a dict of laws by name"),
        ({"laws": {1: GAUSSIAN}}, wn.SpecError, "must be a dict of laws by name"),
        ({"law": GAUSSIAN, "levels": ["a"]}, wn.OptionError, "are factors on the strength of a law, got 'a'"),
        ({"law": GAUSSIAN, "levels": [-0.1]}, wn.OptionError, "must be a finite number >= 0"),
        ({"law": GAUSSIAN, "levels": [True]}, wn.OptionError, "must be a finite number >= 0"),
        ({"law": lambda level: GAUSSIAN, "levels": [[1, 2]]}, wn.OptionError, "names or pairs"),
        ({"law": lambda level: GAUSSIAN, "levels": [float("nan")]}, wn.OptionError, "finite numbers, names"),
        ({"law": GAUSSIAN, "draws": range(3, 3)}, wn.OptionError, "draws=...\\) must be a range"),
        ({"law": GAUSSIAN, "draws": range(0, 6, 2)}, wn.OptionError, "draws=...\\) must be a range"),
        ({"law": GAUSSIAN, "draws": 3, "antithetic": True}, wn.OptionError, "draws=... must be even, got 3"),
        ({"law": GAUSSIAN, "until_sem": "2"}, wn.OptionError, "until_sem"),
        ({"law": GAUSSIAN, "until_sem": "x%"}, wn.OptionError, "until_sem"),
        ({"law": GAUSSIAN, "seed": 1.5}, wn.OptionError, "seed"),
        ({"law": GAUSSIAN, "metric": lambda model: {}}, wn.OptionError, "not an empty dict"),
        ({}, wn.NotNoisyError, "carries no noise"),
    ],
)
def test_what_cannot_be_is_refused_and_says_the_way(options: Any, error: Any, text: str) -> None:
    model, x = make()
    with pytest.raises(error, match=text):
        run(model, x, **options)
    assert not wn.has_weight_noise(model)


@pytest.mark.parametrize("size", SIZES)
def test_levels_of_a_function_are_numbers_names_and_pairs(size: int) -> None:
    model, x = make(size)
    asked: list[Any] = []

    def law(level: Any) -> wn.Noise:
        asked.append(level)
        return wn.Gaussian({"weak": 0.1, "strong": 0.3}.get(level, 0.2))

    report = run(model, x, law=law, levels=["weak", "strong", -3, 0, ("chip b", (1, 2))])
    assert asked == ["weak", "strong", -3, 0, (1, 2)]  # Once each, as they were given.
    assert report.levels == ("weak", "strong", -3.0, 0.0, "chip b")
    assert report.values[2].tolist() == report.values[4].tolist()
    # Level 0 of a function is a level like any other.
    assert report.values[3].tolist() == report.values[2].tolist()
    assert len(set(report.values[3].tolist())) == 3
    assert report.made_by["law"].startswith("law (weak: Gaussian(std=0.1), strong: Gaussian(std=0.3), ")
    assert report.to_markdown().splitlines()[2].startswith("| weak | ")
    assert report.plot().axes[0].get_xticklabels()[0].get_text() == "weak"


@pytest.mark.parametrize("size", SIZES)
def test_what_a_model_carries_besides_stays_as_it_is(size: int) -> None:
    model, x = make(size)
    wn.add_activation_noise(model, {"1": wn.Gaussian(0.5)})
    carried = run(model, x, law=None, levels=[1.0])
    # At level 0 of the law that noise is there, at its own strength and held.
    both = run(model, x, law={"0.*": GAUSSIAN})
    assert both.values[0].tolist() == carried.values[0].tolist()
    assert len(set(both.values[0].tolist())) == 3
    # Without a law the levels are factors on all that the model carries.
    assert len(set(run(model, x).values[0].tolist())) == 1
    wn.add_weight_noise(model, {"2.*": wn.Gaussian(0.1)})
    three = run(model, x, law={"0.*": GAUSSIAN})
    assert three.values[0].tolist() != both.values[0].tolist()
    assert wn.noisy_parameters(model) == {"2.weight": wn.Gaussian(0.1)}
    assert list(wn.noisy_activations(model)) == [("1", "output")]
    alone = run(model, x, by_parameter=True, levels=[1.0])
    assert list(alone.curves) == ["2.weight", "output of 1"]
    assert alone["output of 1"].values.tolist() == carried.values.tolist()


def test_noise_of_the_model_that_is_for_training_is_forced_on_where_it_is_asked_about() -> None:
    model, x = make()
    wn.add_activation_noise(model.eval(), 0.5, when="training")
    assert run(model, x, levels=[1.0]).std.item() > 0
    assert run(model, x, levels=[0.0], law={"0.*": GAUSSIAN}).std.item() == 0


@pytest.mark.parametrize("estimator", ["flipout", "local"])
def test_noise_of_no_chip_is_refused_and_can_be_shared(estimator: Any) -> None:
    model, x = make()
    wn.add_weight_noise(model, wn.LearnedGaussian(0.1), estimator=estimator)
    strengths = wn.learned_strengths(model)
    with pytest.raises(
        wn.SpecError, match=r"'0.weight', '2.weight' has an estimator .*share_noise\(model\) first"
    ):
        run(model, x)
    assert wn.share_noise(model) is model
    assert all(one is strengths[name] for name, one in wn.learned_strengths(model).items())
    shared, _ = make()
    wn.add_weight_noise(shared, wn.LearnedGaussian(0.1))
    assert run(model, x).values.tolist() == run(shared, x).values.tolist()
    with pytest.raises(wn.NotNoisyError):
        wn.share_noise(wn.remove_weight_noise(model))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("law", [GAUSSIAN, lambda level: wn.Gaussian(level)], ids=["factors", "laws"])
@pytest.mark.parametrize(
    ("dtype", "level", "then", "kind"),
    [
        (torch.bfloat16, 1e-4, "What", wn.NoiseRoundsAwayWarning),
        (torch.float16, 1e5, "Use weaker noise.", wn.InfiniteNoiseWarning),
    ],
    ids=["small", "large"],
)
@pytest.mark.parametrize("made", [False, True], ids=["Parameter", "made by weight_norm"])
def test_levels_that_the_weights_cannot_hold_are_named(
    made: bool, dtype: torch.dtype, level: float, then: str, kind: type[Warning], law: Any, size: int
) -> None:
    model, x = make(size, dtype)
    for layer in (model[0], model[2]) if made else ():
        nn.utils.parametrizations.weight_norm(layer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(model, x, law=law, levels=[0, level, 0.1])
    (one,) = caught  # No other, for each weight, from the reads.
    assert f"0.weight at {level}, 2.weight at {level}. {then}" in str(one.message)
    assert one.filename == __file__
    assert one.category is kind


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("dtype", "std", "kind"),
    [(torch.bfloat16, 1e-4, wn.NoiseRoundsAwayWarning), (torch.float16, 1e5, wn.InfiniteNoiseWarning)],
    ids=["small", "large"],
)
def test_a_report_of_layers_warns_of_what_the_weights_cannot_hold(
    dtype: torch.dtype, std: float, kind: type[Warning], size: int
) -> None:
    model, x = make(size, dtype)
    with pytest.warns(kind, match=r"'0\.weight', '2\.weight'"):
        wn.layer_report(model, wn.Gaussian(std), x, draws=2)


@pytest.mark.parametrize("size", SIZES)
def test_levels_that_the_weights_can_hold_pass_in_silence(size: int) -> None:
    model, x = make(size, torch.bfloat16)
    run(model, x, law=GAUSSIAN, levels=[0, 0.1])
    run(model.float(), x.float(), law=GAUSSIAN, levels=[1e-4])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("antithetic", [False, True])
def test_the_worst_chip_can_be_made_again(size: int, antithetic: bool) -> None:
    model, x = make(size)
    report = run(model, x, law=GAUSSIAN, draws=6, seed=5, antithetic=antithetic)
    wn.add_weight_noise(model, GAUSSIAN)
    for draw in ("worst", 3):
        seed, sign = report.seed_of(0.3, draw), report.sign_of(0.3, draw)
        with wn.scale_noise(model, 0.3), wn.hold_noise(model, seed=seed, sign=sign):
            assert Total(x)(model) == (report.worst[2] if draw == "worst" else report.values[2, 3])
    for wrong in (6, -1, "best", True):
        with pytest.raises(wn.OptionError, match="seed_of"):
            report.seed_of(0.3, wrong)  # type: ignore[arg-type]
    with pytest.raises(wn.OptionError, match="must be one of the levels"):
        report.seed_of(0.2, 0)


def test_what_the_metric_draws_hangs_on_the_draw_alone() -> None:
    model, x = make()

    def metric(model: nn.Module) -> float:
        return Total(x)(model) + torch.rand(()).item()

    torch.manual_seed(1)
    with pytest.warns(wn.NondeterministicMetricWarning):
        first = run(model, x, metric=metric, law=GAUSSIAN, draws=5)
    torch.manual_seed(2)
    with pytest.warns(wn.NondeterministicMetricWarning):
        part = run(model, x, metric=metric, law=GAUSSIAN, draws=range(2, 4), levels=[0.3, 0.0])
    assert torch.equal(first.values[[2, 0], 2:4], part.values)
    # It is no noise of the model's, but the spread is there, and is not hidden at level 0.
    assert first.std[0] > 0.1


def test_an_early_stop_leaves_the_draws_it_spared_out() -> None:
    model, x = make()
    report = run(model, x, law=GAUSSIAN, draws=60, until_sem=0.3)
    full = run(model, x, law=GAUSSIAN, draws=60)
    counts = report.draws.tolist()
    assert counts[0] == 60
    assert 20 <= counts[1] < 60
    assert torch.equal(report.values[1, : counts[1]], full.values[1, : counts[1]])
    assert not report.measured["Gaussian(std=1.0, relative_to='absmax')"][1, counts[1] :].any()
    assert report.sem[1] < 0.3
    assert f"at level 0.1: stopped early after {counts[1]} of 60 draws" in str(report)
    pairs = run(model, x, law=GAUSSIAN, draws=60, until_sem="1%", antithetic=True)
    assert (pairs.draws % 2 == 0).all()
    assert pairs.made_by["until_sem"] == "1 %"


@pytest.mark.filterwarnings("ignore::weightnoise.NondeterministicMetricWarning")
@pytest.mark.parametrize("until", [None, 1e-9])
def test_an_entry_that_is_missing_in_some_draws_stays_at_its_draw(until: float | None) -> None:
    model, x = make()
    calls = iter(range(-2, 100))  # Two without noise.

    def metric(model: nn.Module) -> dict[str, float]:
        call = next(calls)
        return {"a": Total(x)(model), **({"b": float(call)} if call in (-2, -1, 1, 3) else {})}

    report = run(model, x, metric=metric, laws={"n": GAUSSIAN}, levels=[0.1], draws=5, until_sem=until)
    assert report.measured["n / b"].tolist() == [[False, True, False, True, False]]
    assert report["n / b"].values[0, [1, 3]].tolist() == [1.0, 3.0]
    assert report["n / b"].draws.item() == 2
    assert report["n / a"].draws.item() == 5


def test_a_report_keeps_where_it_comes_from() -> None:
    import platform

    model, x = make()
    made = run(model, x, law=GAUSSIAN).made_by
    assert made["metric"] == "tests.robustness.test_syntax.Total"
    assert made["weightnoise"] == wn.__version__
    assert made["python"] == platform.python_version()
    assert made["threads"] == str(torch.get_num_threads())
    assert made["date"].startswith("20")


@pytest.mark.parametrize("size", SIZES)
def test_a_chip_may_be_read_anew_in_each_forward(size: int) -> None:
    model, x = make(size)
    chip = wn.Frozen(wn.Gaussian(0.3), chip=7)
    law = [chip, wn.Gaussian(0.1)]

    @torch.no_grad()
    def readings(model: nn.Module) -> dict[str, float]:
        first, second = (model(x).double().sum().item() for _ in range(2))
        return {"first": first, "second": second}

    options: dict[str, Any] = {"law": law, "levels": [1.0], "draws": 3, "metric": readings}
    held, fresh = (run(model, x, reads=reads, **options) for reads in ("held", "fresh"))
    first, second = (fresh.curves[name] for name in fresh.curves)
    assert (first != second).all()
    assert torch.equal(*held.curves.values())
    assert fresh.to_dict()["curves"] == run(model, x, reads="fresh", **options).to_dict()["curves"]
    assert fresh.made_by["reads"] == "fresh"
    with pytest.raises(wn.SpecError, match="differ in reads"):
        fresh.merge(held)
    with pytest.raises(wn.OptionError, match="goes without reads"):
        run(model, x, reads="fresh", vectorize=True, **options)
    with pytest.raises(wn.OptionError, match="must be one of 'held', 'fresh'"):
        run(model, x, reads="new", **options)
