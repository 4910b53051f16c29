"""How a model holds up under noise: a metric over noise levels and draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

from torch import nn

from weightnoise._checks import check_model
from weightnoise._holds import Reads
from weightnoise._robustness.collect import run_plan
from weightnoise._robustness.metric import Metric
from weightnoise._robustness.plan import LevelLaw, Levels, make_plan
from weightnoise._robustness.report import RobustnessReport


def evaluate_robustness(
    model: nn.Module,
    metric: Metric,
    *,
    levels: Levels,
    law: LevelLaw | None = None,
    laws: Mapping[str, LevelLaw] | None = None,
    draws: int | range = 20,
    seed: int = 0,
    progress: bool = True,
    antithetic: bool = False,
    reads: Reads = "held",
    by_parameter: bool = False,
    threshold: float | None = None,
    higher_is_better: bool = True,
    until_sem: float | str | None = None,
    vectorize: bool = False,
    recalibrate: Any = None,
    log: Callable[[str, float, int], object] | None = None,
    executor: Executor | None = None,
) -> RobustnessReport:
    """Evaluate ``metric`` under many held draws of noise ("chips"), at each of several noise levels.

    A draw is one for everything that the metric does, all batches included. Draw k has the same
    random numbers at every level and under every law, so that curves are smooth and comparisons
    paired; it depends on ``seed``, k and the parameter's name alone. What the metric itself draws from torch's
    generator hangs on ``seed`` and k. The model comes back as it was, also after an exception or Ctrl-C.

    Noise that the model carries beside ``law``, such as that on activations, stays as it is, at its own strength
    and held with the rest. Without ``law`` the levels are factors on all noise of the model, on weights and
    activations, which is then on also where it is for training only.

    Args:
        model: a plain model, with ``law``; or a model that carries noise, without.
        metric: ``metric(model)`` returns a number, or a dict of them; it puts the model in eval mode
            itself where it should be. NaN is a result: that of a model which has diverged.
        levels: factors on the strength of the noise; or what a function ``law`` is called with: any numbers,
            names, or pairs of a name and a value.
        law: what `add_weight_noise` takes: a number, a law, a list, a mapping from patterns to laws; or a
            function from a level to such a spec; None for the noise on the model.
        laws: several of these by name, evaluated side by side.
        draws: how many draws per level; or which ones, such as ``range(20, 40)``, for a part of an evaluation.
        seed: of the draws.
        progress: show a progress bar when it takes long (tqdm where it is installed).
        reads: ``"held"`` for one draw of everything in a chip; ``"fresh"`` holds what belongs to the hardware,
            and draws what belongs to a reading anew in each forward, as `hold_noise` does.
        antithetic: use each draw twice, mirrored: the mean of an odd effect is then exact.
        by_parameter: noise on one parameter, or activation, at a time, a curve for each: which is the most
            sensitive?
        threshold: what the metric must reach, for the yield.
        higher_is_better: which way the metric is good.
        until_sem: go on to the next level once the standard error of the mean, with Student's allowance for few
            draws, is below this number, or below ``"2%"`` of the mean; never before 20 draws, and never while all
            draws are equal.
        vectorize: evaluate the draws of a level together by `torch.vmap`: up to twice as fast for small models
            on little data, slower where one draw fills the processor; equal up to rounding. ``metric``
            must return tensors, without ``.item()``.
        recalibrate: a DataLoader or a list of batches, or a function of the model that runs some: with it the
            running statistics of batch normalisation are gathered anew for each chip, as plain means over these
            batches, before the metric. Of a batch that is a tuple or a list the model takes the first item.
        log: ``log(name, value, step)`` is called when a level is done, for the mean of each entry and its standard
            error; the step is the place of the level. ``SummaryWriter(...).add_scalar`` and ``mlflow.log_metric``
            do.
        executor: of `concurrent.futures`, such as a ProcessPoolExecutor, or the one of joblib, dask or MPI: its
            workers measure the draws. The model is sent to each worker once. Draws are numbered, so the report is
            that of one process to the last bit, as far as torch's sums are, which may hang on the number of
            threads: workers get their share of the cores, and forked ones a single thread.

    Returns:
        A report with a curve for each law, parameter and entry of the metric.

    Raises:
        ValueError: for levels, draws or options that cannot be.
        WeightNoiseError: what `add_weight_noise` and `hold_noise` raise; `SpecError` for ``by_parameter`` with
            several laws, and for noise with an estimator, which is that of no chip (see `share_noise`).
        Exception: what the metric raises, and KeyboardInterrupt. It has the report of what was measured before it
            as its attribute ``report``, once a draw was measured.

    Warns:
        NotVectorizedWarning: if ``vectorize`` is not possible, with the reason, and draws are evaluated one
            by one: ``.item()`` or a decision by a value in metric or model, batch normalisation in training
            mode, noise on activations.
        NondeterministicMetricWarning: if the metric differs between two runs without noise.
        WorkerLostWarning: if a worker dies; its draws are done again.
        NoiseRoundsAwayWarning: if the noise at a level is too small for the precision of a low-precision weight.

    Example:
        >>> report = evaluate_robustness(
        ...     nn.Linear(4, 1), lambda model: model(torch.ones(1, 4)).item(), levels=[0.0, 0.1], law=Gaussian(1.0)
        ... )
        >>> report.values.shape
        torch.Size([2, 20])

    Source:
        Evaluation over programmed chips: Joshi et al., 2020, arXiv 1906.03138.
    """
    check_model(model)
    plan = make_plan(
        metric,
        levels,
        law,
        laws,
        draws,
        seed=seed,
        antithetic=antithetic,
        reads=reads,
        by_parameter=by_parameter,
        until_sem=until_sem,
        vectorize=vectorize,
        recalibrate=recalibrate,
        log=log,
        executor=executor,
    )
    return run_plan(
        model, plan, threshold=threshold, higher_is_better=higher_is_better, progress=progress, executor=executor
    )
