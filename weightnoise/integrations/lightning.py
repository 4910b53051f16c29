"""Weight noise in a Lightning Trainer: `WeightNoiseCallback`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import weightnoise as wn
from weightnoise._noise.control import When
from weightnoise._robustness.metric import Metric
from weightnoise._select.choose import Spec
from weightnoise.integrations._training import NoisyTraining

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.utilities.model_helpers import is_overridden
else:
    try:
        import lightning.pytorch as pl
        from lightning.pytorch.utilities.model_helpers import is_overridden
    except ModuleNotFoundError:
        import pytorch_lightning as pl
        from pytorch_lightning.utilities.model_helpers import is_overridden


class WeightNoiseCallback(pl.Callback):
    """Puts noise on a LightningModule when a fit begins and takes it off when it ends.

    The noise is there before the strategy and the optimizers see the model, so that learned strengths are
    trained, and synchronised under DDP; layers that the module makes in its ``setup`` or ``configure_model`` get
    it too. Checkpoints hold the clean weights under the names of the plain model, and the number of steps of the
    schedule. The Trainer's loggers get the factor of the schedule, ``noise/factor``, and the report. After an
    exception the noise stays, for the next fit.

    Args:
        spec: what `add_weight_noise` takes; None for a model that carries noise of its own.
        fn: from the number of training batches that ended in an optimizer step to a factor, for `NoiseScheduler`.
        when: ``"always"`` or ``"training"``, as in `add_weight_noise`.
        in_validation: leave the noise on in validation, test and prediction.
        remove: take the noise off at the end of the fit, if this callback has added it.
        metric: for `evaluate_robustness` at the end of the fit; called with the LightningModule.
        levels: the noise levels of that evaluation.
        draws: draws per level.

    Attributes:
        schedule: the `NoiseScheduler` of the fit; None without ``fn``.
        report: the `RobustnessReport` of the fit; None without ``metric``.

    Raises:
        ValueError: for ``metric`` without ``levels``.
        NotNoisyError: when a fit begins without ``spec`` on a model without noise.
    """

    def __init__(
        self,
        spec: Spec | None = None,
        *,
        fn: Callable[[int], float] | None = None,
        when: When = "always",
        in_validation: bool = False,
        remove: bool = True,
        metric: Metric | None = None,
        levels: Sequence[float] = (),
        draws: int = 20,
    ) -> None:
        self._training = NoisyTraining(spec, fn, when, remove, metric, levels, draws)
        self.in_validation = in_validation
        self.schedule: wn.NoiseScheduler | None = None
        self.report: wn.RobustnessReport | None = None
        self._global_step = 0
        self._quiet = ExitStack()
        self._waiting = ExitStack()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Add the noise as soon as the module has all its layers: after its own hooks that may make some."""
        if stage == "fit":
            hook = "configure_model" if is_overridden("configure_model", pl_module) else "setup"
            self._after(pl_module, hook)

    def _after(self, pl_module: pl.LightningModule, hook: str) -> None:
        """Call the method of that name, once, and begin then: Trainers call no callback there."""
        method, own = getattr(pl_module, hook), vars(pl_module)
        before = own.get(hook)

        def undo() -> None:
            own.pop(hook, None)
            if before is not None:
                own[hook] = before

        def call(*args: Any, **options: Any) -> None:
            self._waiting.close()
            method(*args, **options)
            self._training.add(pl_module)
            self.schedule = self._training.schedule(pl_module)

        own[hook] = call
        self._waiting.callback(undo)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps of the schedule."""
        return {} if self.schedule is None else {"schedule": self.schedule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the schedule where the checkpoint was made."""
        if self.schedule is not None and "schedule" in state_dict:
            self.schedule.load_state_dict(state_dict["schedule"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count optimizer steps from here on."""
        self._global_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step of the schedule, unless the batch was one of several whose gradients accumulate."""
        if self.schedule is not None and trainer.global_step > self._global_step:
            self.schedule.step()
            pl_module.log("noise/factor", self.schedule.factor)
        self._global_step = trainer.global_step

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate, tell the loggers, and take the noise off."""

        def log(name: str, value: float) -> None:
            for logger in trainer.loggers:
                logger.log_metrics({name: value}, step=trainer.global_step)

        self.report = self._training.end(pl_module, log)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the quiet of a validation that was broken off, and let go of a module that never began."""
        self._quiet.close()
        self._waiting.close()

    def _silence(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.in_validation:
            self._quiet.enter_context(wn.no_noise(pl_module))

    def _sound(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._quiet.close()

    on_validation_start = on_test_start = on_predict_start = _silence
    on_validation_end = on_test_end = on_predict_end = _sound
