"""Predictions of a model under many draws of its noise, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from weightnoise._checks import check_choice, check_count, check_model, check_seed
from weightnoise._contexts import force_noise, hold_noise
from weightnoise._errors import OptionError, OptionTypeError
from weightnoise._random import seeds as _seeds
from weightnoise._statistics import RunningMean, quantiles_over_draws
from weightnoise._torch.modules import state_kept

Outputs: TypeAlias = Literal["values", "logits", "probabilities"]
Forward: TypeAlias = Callable[[Any, Any], Any]


@dataclass(frozen=True, eq=False)
class Prediction:
    r"""The result of `predict`: statistics over draws, without gradients, in float32 or better.

    With p the probabilities of one draw, E the mean over draws and ``H(p) = -sum p ln p`` in nats:

    Attributes:
        mean: of the outputs; for classification ``E p``, the probabilities to predict with.
        std: standard deviation of the outputs from draw to draw, from an unbiased variance.
        predictive_entropy: ``H(E p)``, the whole uncertainty; None unless for classification.
        expected_entropy: ``E H(p)``, what is in the input; None unless for classification.
        quantiles: of the outputs over draws, those asked for along the first dimension; None if none were.
    """

    mean: Tensor
    std: Tensor
    predictive_entropy: Tensor | None = None
    expected_entropy: Tensor | None = None
    quantiles: Tensor | None = None

    @property
    def mutual_information(self) -> Tensor | None:
        """``H(E p) - E H(p)``: what the draws disagree about; not negative, up to rounding."""
        if self.predictive_entropy is None or self.expected_entropy is None:
            return None
        return self.predictive_entropy - self.expected_entropy


@dataclass(frozen=True)
class _Task:
    """The statistics that are asked of each batch.

    Attributes:
        units: the draws, by seed and sign: alone, or with their mirror.
    """

    units: Sequence[Sequence[tuple[int, int]]]
    outputs: Outputs
    dim: int | None
    quantiles: Sequence[float]
    forward: Forward


def predict(
    model: nn.Module,
    inputs: Any,
    draws: int = 30,
    *,
    outputs: Outputs = "values",
    seed: int = 0,
    antithetic: bool = False,
    quantiles: Sequence[float] = (),
    dim: int | None = None,
    forward: Forward | None = None,
) -> Prediction:
    r"""Mean and spread of a noisy model's outputs over held draws, with the uncertainty of a classifier.

    Draw k has the same noisy weights for every example and batch, in any process: those of ``seed``, k and the
    names of the parameters, as in `evaluate_robustness`. torch's random state stays as it is. Noise is on also
    where the model's own is for training only; the model is in eval mode meanwhile (no dropout, running statistics
    of batch normalisation), and all of its modes and buffers come back. No gradient is kept.

    Over n draws with outputs y: ``mean = E y`` and ``std^2 = sum (y - mean)^2 / (n - 1)``, in running sums, so
    that memory does not grow with n. Quantiles take the outputs of all draws for one batch at a time. Antithetic
    draws come in mirrored pairs, whose mean is exact where the output is linear in the noise; with m the means of
    the n / 2 pairs, ``std^2 = sum (y - mean)^2 / n + sum (m - mean)^2 / (n / 2 (n / 2 - 1))``, unbiased too.

    Args:
        model: a module with weight or activation noise.
        inputs: one batch (a tensor; a mapping, given by name; with ``forward``, a tuple), or an iterable of
            batches such as a DataLoader, which is gone through once. Their results are joined along the first
            dimension of the outputs, on the device of these.
        draws: how many forwards per batch.
        outputs: ``"values"``, as in regression; for classification ``"logits"``, of which softmax makes the
            probabilities, or ``"probabilities"``, which sum to 1.
        seed: of the draws.
        antithetic: draws in mirrored pairs, an even number of 4 or more.
        quantiles: which ones, from 0 to 1, interpolated between draws: ``(0.05, 0.95)``.
        dim: of the classes; by default the last one of outputs with at most two dimensions.
        forward: ``forward(model, batch)`` returns the output tensor, such as
            ``lambda model, batch: model(batch[0])``.

    Returns:
        A `Prediction` with ``mean`` and ``std`` in the shape of the outputs, entropies without the dimension
        of the classes, ``quantiles`` with a first dimension more.

    Raises:
        NotNoisyError: if the model carries no noise.
        ValueError: for options that cannot be, outputs that are no probabilities, and no batch at all.
        TypeError: for a batch of another kind without ``forward``, and a model that returns no floating-point
            tensor.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), 0.1)
        >>> found = predict(model, torch.ones(4, 3), outputs="logits")
        >>> found.mean.shape, found.mutual_information.shape
        (torch.Size([4, 2]), torch.Size([4]))

    Source:
        Gal and Ghahramani, Dropout as a Bayesian approximation, 2016, arXiv 1506.02142; the entropies: Houlsby
        et al., 2011, arXiv 1112.5745, and Depeweg et al., 2018, arXiv 1710.07283; running sums: Welford, 1962.
    """
    check_model(model)
    seed = check_seed("predict", seed)
    check_choice("predict", "outputs", outputs, ("values", "logits", "probabilities"))
    draws = check_count("predict", "draws", draws, 4 if antithetic else 2)
    if antithetic and draws % 2:
        raise OptionError(f"predict(antithetic=True) takes draws in pairs: draws=... must be even, got {draws}.")
    if not all(0 <= one <= 1 for one in quantiles):
        raise OptionError(f"predict(quantiles=...) must be numbers from 0 to 1, got {quantiles!r}.")
    each = _seeds.numbered(seed, draws, antithetic)
    size = 2 if antithetic else 1
    units = [each[start : start + size] for start in range(0, draws, size)]
    task = _Task(units, outputs, dim, tuple(quantiles), forward or _forward)
    with torch.no_grad(), state_kept(model), force_noise(model):
        model.eval()
        found = [_of_batch(model, batch, task) for batch in _batches(inputs)]
    return _joined(found)


def _batches(inputs: Any) -> Iterator[Any]:
    if isinstance(inputs, (Tensor, Mapping, tuple)):
        yield inputs
    elif isinstance(inputs, Iterable):
        yield from inputs
    else:
        raise OptionTypeError(
            f"predict takes a batch or an iterable of batches, and got a {type(inputs).__name__}. Put a dataset "
            "into a DataLoader."
        )


def _forward(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (list, tuple)) and len(batch) == 1:
        return _forward(model, batch[0])
    raise OptionTypeError(
        f"predict cannot tell what of a batch goes into the model: it is a {type(batch).__name__}. Say so: "
        "predict(..., forward=lambda model, batch: model(batch[0]))."
    )


def _of_batch(model: nn.Module, batch: Any, task: _Task) -> Prediction:
    sums, entropy, kept = RunningMean(), RunningMean(), []
    for unit in task.units:
        values = []
        for seed, sign in unit:
            with hold_noise(model, seed=seed, sign=sign):
                values.append(_values(task.forward(model, batch), task))
        sums.add(values)
        if task.outputs != "values":
            entropy.add([_entropy(value, task) for value in values])
        if task.quantiles:
            kept += values
    return Prediction(
        sums.mean,
        sums.std(),
        _entropy(sums.mean, task) if task.outputs != "values" else None,
        entropy.mean if task.outputs != "values" else None,
        quantiles_over_draws(torch.stack(kept), task.quantiles) if task.quantiles else None,
    )


def _values(output: Any, task: _Task) -> Tensor:
    """The output, or the probabilities that it stands for, in float32 or better."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise OptionTypeError(
            f"predict needs a floating-point tensor from the model, and got {kind}. Choose one: "
            "predict(..., forward=lambda model, batch: model(batch).logits)."
        )
    values = output.to(torch.promote_types(output.dtype, torch.float32))
    if task.outputs == "values":
        return values
    dim = _class_dim(values, task)
    if task.outputs == "logits":
        return values.softmax(dim)
    sums = values.sum(dim)
    # As far off as rounding in the precision of the output: 0.02 in bfloat16.
    if not bool((values >= 0).all() and (sums - 1).abs().le(max(1e-4, 3 * torch.finfo(output.dtype).eps)).all()):
        raise OptionError(
            "predict(outputs='probabilities') needs numbers that are not negative and sum to 1 along dimension "
            f"{dim}. Use outputs='logits' where the model returns those."
        )
    return values


def _class_dim(values: Tensor, task: _Task) -> int:
    if task.dim is None and not 1 <= values.ndim <= 2:
        raise OptionError(
            f"predict(dim=...) must say which dimension of outputs of shape {tuple(values.shape)} has the classes."
        )
    dim = -1 if task.dim is None else task.dim
    if values.shape[dim] < 2:
        raise OptionError(
            f"predict(outputs={task.outputs!r}) needs two classes or more along dimension {dim} of outputs of "
            f"shape {tuple(values.shape)}. Of one logit z make two: forward=lambda model, x: "
            "torch.cat([torch.zeros_like(z := model(x)), z], dim=-1)."
        )
    return dim


def _entropy(probabilities: Tensor, task: _Task) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(_class_dim(probabilities, task))
    return entropy


def _joined(found: Sequence[Prediction]) -> Prediction:
    """The batches, one after the other."""
    if not found:
        raise OptionError("predict(inputs=...) must give at least one batch.")
    if len(found) == 1:
        return found[0]

    def join(name: str, dim: int = 0) -> Tensor | None:
        parts = [getattr(one, name) for one in found]
        return None if parts[0] is None else torch.cat(parts, dim)

    return Prediction(
        torch.cat([one.mean for one in found]),
        torch.cat([one.std for one in found]),
        join("predictive_entropy"),
        join("expected_entropy"),
        join("quantiles", 1),
    )
