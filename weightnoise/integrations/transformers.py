"""Weight noise in a Transformers Trainer: `WeightNoiseCallback`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import weightnoise as wn
from weightnoise._errors import OptionError
from weightnoise._noise.control import When
from weightnoise._robustness.metric import Metric
from weightnoise._select.choose import Spec
from weightnoise.integrations._training import NoisyTraining


class WeightNoiseCallback(TrainerCallback):
    """Puts noise on the model of a Trainer when that is made, and takes it off when training ends.

    Give it to ``Trainer(callbacks=[...])``: there it adds the noise before the optimizer and any distributed
    wrapper see the model, as learned strengths need it. Checkpoints hold the clean weights under the names of
    the plain model. A resumed run goes on with the schedule at the Trainer's step.

    Args:
        spec: what `add_weight_noise` takes; None for a model that carries noise of its own.
        fn: from the number of optimizer steps to a factor, for `NoiseScheduler`.
        when: ``"training"``, so that evaluation and prediction, for which the Trainer puts the model in eval
            mode, are without noise; or ``"always"``.
        remove: take the noise off at the end of the training, if this callback has added it.
        metric: for `evaluate_robustness` at the end of the training; called with the model.
        levels: the noise levels of that evaluation.
        draws: draws per level.
        log: called with name, value and step for the factor of the schedule, ``noise/factor``, after each
            optimizer step, and for the report: ``SummaryWriter().add_scalar``, say.

    Attributes:
        schedule: the `NoiseScheduler` of the training; None without ``fn``.
        report: the `RobustnessReport` of the training; None without ``metric``.

    Raises:
        ValueError: for ``metric`` without ``levels``, and for learned strengths that come too late for
            the optimizer.
        NotNoisyError: without ``spec`` on a model without noise.
    """

    def __init__(
        self,
        spec: Spec | None = None,
        *,
        fn: Callable[[int], float] | None = None,
        when: When = "training",
        remove: bool = True,
        metric: Metric | None = None,
        levels: Sequence[float] = (),
        draws: int = 20,
        log: Callable[[str, float, int], object] | None = None,
    ) -> None:
        self._log = log or (lambda name, value, step: None)
        self._training = NoisyTraining(spec, fn, when, remove, metric, levels, draws)
        self.schedule: wn.NoiseScheduler | None = None
        self.report: wn.RobustnessReport | None = None

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the noise."""
        self._training.add(kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the schedule, or go on with it; add the noise where the Trainer was there before."""
        model: nn.Module = kwargs["model"]
        if self._training.add(model) and wn.learned_strengths(model):
            self._training.take_off(model)
            raise OptionError(
                "The optimizer does not know the strengths that the noise learns. Give a new WeightNoiseCallback "
                "to Trainer(callbacks=[...]) for every training, rather than add_callback or a second train()."
            )
        self.schedule = self._training.schedule(model)
        if self.schedule is not None:
            self.schedule.load_state_dict({"steps": state.global_step})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count an optimizer step."""
        if self.schedule is not None:
            self.schedule.step()
            self._log("noise/factor", self.schedule.factor, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate, and take the noise off."""
        self.report = self._training.end(
            kwargs["model"], lambda name, value: self._log(name, value, state.global_step)
        )
