"""WeightNoiseCallback in the real Trainer of Lightning, on a tiny model."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import weightnoise as wn
from tests.helpers import in_forward

pl = pytest.importorskip("lightning.pytorch", reason="needs the extra 'lightning'")

from weightnoise.integrations.lightning import WeightNoiseCallback  # noqa: E402

pytestmark = [
    # Lightning says that it would like more workers, a logger, another device, and imports what is deprecated.
    pytest.mark.filterwarnings("ignore:.*(num_workers|litlogger|LeafSpec|no `val_dataloader`|`ckpt_path`).*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
X = torch.linspace(-1, 1, 32).reshape(8, 4)
SPEC = wn.Gaussian(0.3)


class Model(pl.LightningModule):  # type: ignore[misc, name-defined]
    """Remembers whether noise was on in each of its steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.seen: dict[str, list[bool]] = {"train": [], "val": [], "test": [], "predict": []}
        self.factors: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.net(x)
        return output

    def note(self, step: str) -> None:
        first: Any = self.net[0]
        self.seen[step].append(not isinstance(first.weight, nn.Parameter))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        self.note("train")
        return self(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.note("val")
        self.log("loss", self(batch[0]).square().mean())

    def test_step(self, batch: list[Tensor], index: int) -> None:
        self.note("test")

    def predict_step(self, batch: list[Tensor], index: int) -> Tensor:
        self.note("predict")
        return self(batch[0])

    def on_train_batch_start(self, batch: list[Tensor], index: int) -> None:
        torch.manual_seed(self.global_step)  # Lightning does not save torch's random state.

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class MadeLate(Model):
    """Makes its layers in a hook of the Trainer's, as a module that is too large for one device does."""

    def __init__(self) -> None:
        super().__init__()
        del self.net

    def make(self) -> None:
        if not hasattr(self, "net"):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


class InConfigureModel(MadeLate):
    def configure_model(self) -> None:
        self.make()


class InSetup(MadeLate):
    def setup(self, stage: str) -> None:
        self.make()


def data() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X), batch_size=2)


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    given = {"max_epochs": 2, "enable_checkpointing": False, **quiet, **options}
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **given)


def test_noise_is_on_in_training_alone_and_gone_after_the_fit(tmp_path: Path) -> None:
    model = Model()
    parameters = [id(parameter) for parameter in model.parameters()]
    trainer(tmp_path, WeightNoiseCallback(SPEC)).fit(model, data(), data())
    assert model.seen["train"] == [True] * 8
    assert model.seen["val"] == [False] * (2 + 8)  # Two of them before the training, as a sanity check.
    assert not wn.has_weight_noise(model)
    assert [id(parameter) for parameter in model.parameters()] == parameters


@pytest.mark.parametrize("kind", [InConfigureModel, InSetup])
def test_layers_that_are_made_late_get_their_noise(kind: Any, tmp_path: Path) -> None:
    def fit(model: Model, epochs: int = 2, checkpoint: Path | None = None) -> wn.NoiseScheduler:
        callback = WeightNoiseCallback(wn.LearnedGaussian(0.3), fn=wn.linear_ramp(10), remove=False)
        run = trainer(tmp_path, callback, max_epochs=epochs)
        torch.manual_seed(0)
        run.fit(model, data(), data(), ckpt_path=checkpoint)
        assert not {"setup", "configure_model"} & vars(model).keys()  # Its hooks are its own again.
        run.save_checkpoint(tmp_path / "last.ckpt")
        assert callback.schedule is not None
        return callback.schedule

    late, early = kind(), Model()
    assert fit(early).steps == fit(late).steps == 8
    assert late.seen["train"] == [True] * 8
    found, expected = late.state_dict(), early.state_dict()
    assert list(found) == list(expected)
    assert len(wn.learned_strengths(late)) == 2
    assert all(torch.equal(value, expected[name]) for name, value in found.items())  # Strengths were trained too.
    assert fit(kind(), 3, tmp_path / "last.ckpt").steps == 12


def test_a_hook_that_fails_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    class Failing(InConfigureModel):
        def setup(self, stage: str) -> None:
            raise RuntimeError("no data")

    model = Failing()
    with pytest.raises(RuntimeError, match="no data"):
        trainer(tmp_path, WeightNoiseCallback(SPEC)).fit(model, data())
    assert "configure_model" not in vars(model)
    own = InConfigureModel()
    calls: list[str] = []

    def mine() -> None:  # A hook that was put on the instance stays there.
        calls.append("mine")
        own.make()

    own.configure_model = mine  # type: ignore[method-assign]
    trainer(tmp_path, WeightNoiseCallback(SPEC), max_epochs=1).fit(own, data())
    assert (calls, vars(own)["configure_model"]) == (["mine"], mine)
    assert own.seen["train"] == [True] * 4


def test_noise_that_stays_is_quiet_in_test_and_predict(tmp_path: Path) -> None:
    model = Model()
    run = trainer(tmp_path, WeightNoiseCallback(SPEC, remove=False), max_epochs=1)
    run.fit(model, data())
    run.test(model, data(), verbose=False)
    outputs = torch.cat(run.predict(model, data()))
    assert model.seen["test"] == model.seen["predict"] == [False] * 4
    assert wn.has_weight_noise(model)
    plain = Model()
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(outputs, torch.cat([plain(part) for part in X.split(2)]))
    run.fit(model, data())  # Once more: noise that the callback has added is not added again.


def test_noise_in_validation_is_an_option(tmp_path: Path) -> None:
    model = Model()
    trainer(tmp_path, WeightNoiseCallback(SPEC, in_validation=True)).fit(model, data(), data())
    assert model.seen["val"] == [True] * 10
    model = Model()
    callback = WeightNoiseCallback(SPEC, in_validation=True, when="training")
    trainer(tmp_path, callback).fit(model, data(), data())
    assert model.seen["val"] == [False] * 10
    assert model.seen["train"] == [True] * 8


def test_the_schedule_counts_optimizer_steps(tmp_path: Path) -> None:
    callback = WeightNoiseCallback(SPEC, fn=wn.linear_ramp(10))
    trainer(tmp_path, callback).fit(Model(), data())
    assert callback.schedule is not None
    assert callback.schedule.steps == 8
    callback = WeightNoiseCallback(SPEC, fn=wn.linear_ramp(10))
    trainer(tmp_path, callback, accumulate_grad_batches=2).fit(Model(), data())
    assert callback.schedule is not None
    assert callback.schedule.steps == 4


def test_a_resumed_fit_has_the_same_bits_and_checkpoints_are_plain(tmp_path: Path) -> None:
    def fit(epochs: int, checkpoint: Path | None = None) -> Model:
        model = Model()
        callback = WeightNoiseCallback(SPEC, fn=wn.linear_ramp(10))
        run = trainer(tmp_path, callback, max_epochs=epochs)
        run.fit(model, data(), data(), ckpt_path=checkpoint)
        return model

    uninterrupted = fit(3).state_dict()
    checkpoints = pl.callbacks.ModelCheckpoint(tmp_path / "during", save_last=True)
    run = trainer(
        tmp_path, WeightNoiseCallback(SPEC, fn=wn.linear_ramp(10)), checkpoints, enable_checkpointing=True
    )
    run.fit(Model(), data(), data())
    saved = torch.load(tmp_path / "during" / "last.ckpt")
    assert list(saved["state_dict"]) == list(Model().state_dict())
    assert saved["callbacks"]["WeightNoiseCallback"] == {"schedule": {"steps": 8}}
    resumed = fit(3, tmp_path / "during" / "last.ckpt").state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in uninterrupted.items())
    Model().load_state_dict(saved["state_dict"], strict=True)


def test_learned_strengths_are_trained(tmp_path: Path) -> None:
    model = Model()
    callback = WeightNoiseCallback(wn.LearnedGaussian(0.3), remove=False)
    trainer(tmp_path, callback).fit(model, data())
    strengths = wn.learned_strengths(model)
    assert len(strengths) == 2
    assert not any(torch.equal(s, torch.full_like(s, 0.3)) for s in strengths.values())


def test_robustness_at_the_end_of_the_fit(tmp_path: Path) -> None:
    def metric(model: Any) -> float:
        with torch.no_grad():
            return float(model(X).square().mean())

    callback = WeightNoiseCallback(SPEC, metric=metric, levels=[0.0, 1.0, 3.0], draws=5)
    model = Model()
    trainer(tmp_path, callback).fit(model, data())
    assert callback.report is not None
    assert callback.report.levels == (0.0, 1.0, 3.0)
    by_hand = wn.evaluate_robustness(model, metric, levels=[0.0, 1.0, 3.0], law=SPEC, draws=5, progress=False)
    torch.testing.assert_close(callback.report.values, by_hand.values)
    with pytest.raises(ValueError, match=r"needs levels=\[\.\.\.\]"):
        WeightNoiseCallback(SPEC, metric=metric)


def test_the_loggers_get_the_factor_and_the_report(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    callback = WeightNoiseCallback(
        SPEC, fn=wn.linear_ramp(4), metric=lambda model: 3.0, levels=[0.0, 1.0], draws=2
    )
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    made = pl.Trainer(
        max_epochs=1,
        callbacks=[callback],
        logger=logger,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    made.fit(Model(), data())
    logger.save()
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    assert callback.schedule is not None
    factors = [float(row["noise/factor"]) for row in logged if row["noise/factor"]]
    assert factors
    assert factors[-1] == callback.schedule.factor
    levels = [row[name] for row in logged for name in row if name.startswith("robustness/noise at") and row[name]]
    assert levels == ["3.0", "3.0"]


def test_a_model_with_noise_of_its_own_keeps_it(tmp_path: Path) -> None:
    model = wn.add_weight_noise(Model(), SPEC)
    trainer(tmp_path, WeightNoiseCallback(fn=wn.linear_ramp(10))).fit(model, data(), data())
    assert model.seen["train"] == [True] * 8
    assert not any(model.seen["val"])
    assert wn.has_weight_noise(model)
    with pytest.raises(wn.AlreadyNoisyError):
        trainer(tmp_path, WeightNoiseCallback(SPEC)).fit(model, data())
    with pytest.raises(wn.NotNoisyError, match="has no spec"):
        trainer(tmp_path, WeightNoiseCallback()).fit(Model(), data())


def test_a_validation_that_breaks_off_leaves_noise_on(tmp_path: Path) -> None:
    class Breaking(Model):
        def validation_step(self, batch: list[Tensor], index: int) -> None:
            raise RuntimeError("broken")

    model = Breaking()
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, WeightNoiseCallback(SPEC)).fit(model, data(), data())
    in_forward(model.note, "train")
    assert model.seen["train"] == [True]


def test_the_stochastic_average_of_lightning(tmp_path: Path) -> None:
    average = pl.callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    model = Model()
    trainer(tmp_path, WeightNoiseCallback(SPEC), average, max_epochs=4).fit(model, data())
    assert not wn.has_weight_noise(model)
    assert list(model.state_dict()) == list(Model().state_dict())


def test_the_code_in_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs/integrations.md").read_text()
    code = page.partition("## Lightning")[2].partition("```py\n")[2].partition("```")[0]
    names: dict[str, Any] = {"model": Model(), "train_loader": data(), "val_loader": data()}
    names["accuracy"] = lambda model: float(model(X).detach().square().mean())
    quiet = "accelerator='cpu', logger=False, enable_checkpointing=False, enable_progress_bar=False, "
    exec(code.replace("pl.Trainer(", f"pl.Trainer({quiet}"), names)
    assert names["noise"].report.levels == (0.0, 0.5, 1.0, 2.0)
    assert set(names["model"].seen["val"]) == {False}
