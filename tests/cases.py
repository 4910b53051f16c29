"""The models and laws that tests run over. A new model or law is one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from weightnoise import (
    BitFlip,
    Clip,
    Correlated,
    Custom,
    DropConnect,
    Frozen,
    Gaussian,
    LearnedClip,
    LearnedGaussian,
    LogNormal,
    Noise,
    ParametricNoise,
    ProgrammingNoise,
    Protect,
    QuantizationNoise,
    Quantize,
    StateDependentNoise,
    StuckAt,
    Temperature,
    Uniform,
    Variational,
    VariationalDropout,
    add_activation_noise,
    add_weight_noise,
)


def torch_before(version: str) -> bool:
    """Whether torch is older; the one place where tests ask."""
    return torch.__version__ < version  # Not as text: torch's own class compares.


def needs_torch(version: str, why: str) -> pytest.MarkDecorator:
    """Skip a test where torch is older: ``why`` says what it does there."""
    return pytest.mark.skipif(torch_before(version), reason=f"torch before {version}: {why}")


# What torch says of a layer whose class its quantisation does not know.
NOT_QUANTISED = "from_float only works for"

# Why tests of contexts inside compiled code need a newer torch.
NO_CONTEXTS = "its Dynamo cannot enter the package's contexts"


class ReadsTwice(nn.Module):
    """Owns a parameter and reads it twice in one forward, as a tied autoencoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 6) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.matrix) @ self.matrix.T


class LanguageModel(nn.Module):
    """An embedding tied to the output head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.body = nn.Linear(5, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.head(torch.tanh(self.body(self.embed(tokens))))
        return output


class SharedModule(nn.Module):
    """One layer, used twice and reached under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.second(torch.tanh(self.first(x)))
        return output


class First(nn.Module):
    """The output of a recurrent layer without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x)[0]
        return output


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` of an input with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.attention(x, x, x)[0]
        return output


def frozen_first(model: nn.Sequential) -> nn.Sequential:
    """Freeze the first layer."""
    model[0].requires_grad_(False)
    return model


@dataclass(frozen=True)
class Case:
    """A model and an input for it."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]

    def model(self, seed: int = 0) -> nn.Module:
        """A fresh model, always with the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make()

    def batch(self) -> Tensor:
        """The same batch each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return self.inputs()


def single_loss(model: nn.Module, x: Tensor) -> Tensor:
    """A smooth scalar of one forward."""
    y = model(x)
    return (y.square() + y.tanh()).to(torch.promote_types(y.dtype, torch.float32)).mean()


CASES = {
    "mlp": Case(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), lambda: torch.randn(5, 4)),
    "conv": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2)
        ),
        lambda: torch.randn(3, 2, 4, 4),
    ),
    "lstm": Case(lambda: First(nn.LSTM(4, 3, num_layers=2, bidirectional=True)), lambda: torch.randn(5, 2, 4)),
    "gru": Case(lambda: First(nn.GRU(4, 3)), lambda: torch.randn(5, 2, 4)),
    "attention": Case(SelfAttention, lambda: torch.randn(2, 5, 4)),
    "transformer": Case(
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), lambda: torch.randn(2, 5, 4)
    ),
    "tied": Case(LanguageModel, lambda: torch.randint(7, (3, 4))),
    "shared": Case(SharedModule, lambda: torch.randn(5, 4)),
    "reads_twice": Case(ReadsTwice, lambda: torch.randn(5, 4)),
    "frozen": Case(
        lambda: frozen_first(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))),
        lambda: torch.randn(5, 4),
    ),
    "weight_norm": Case(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3)),
        lambda: torch.randn(5, 4),
    ),
    "float64": Case(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double(),
        lambda: torch.randn(5, 4, dtype=torch.float64),
    ),
    "bfloat16": Case(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).bfloat16(),
        lambda: torch.randn(5, 4, dtype=torch.bfloat16),
    ),
}


def shrink(weight: Tensor) -> Tensor:
    """A differentiable random transformation of a weight."""
    return torch.tanh(weight) * (1 + 0.3 * torch.rand(weight.shape, dtype=weight.dtype, device=weight.device))


LAWS: dict[str, Noise | list[Noise]] = {
    "gaussian": Gaussian(0.2),
    "gaussian_absmax": Gaussian(0.2, relative_to="absmax"),
    "gaussian_absmax_exact": Gaussian(0.2, relative_to="absmax", gradient="exact"),
    "gaussian_std_per_channel": Gaussian(0.2, relative_to="std", per=0, gradient="exact"),
    "gaussian_rms_per_channel": Gaussian(0.2, relative_to="rms", per=-1),
    "gaussian_value": Gaussian(0.2, relative_to="value"),
    "gaussian_value_exact": Gaussian(0.2, relative_to="value", gradient="exact"),
    "gaussian_rms_per_tile": Gaussian(0.2, relative_to="rms", tile=(3, 3), gradient="exact"),
    "uniform": Uniform(0.2),
    "uniform_rms_exact": Uniform(0.2, relative_to="rms", gradient="exact"),
    "log_normal": LogNormal(0.3),
    "log_normal_exact": LogNormal(0.3, gradient="exact"),
    "correlated_rows": Correlated(LogNormal(0.3), shared=-1),
    "correlated_smooth": Correlated(Gaussian(0.2, relative_to="absmax"), length=2.0),
    "correlated_die": [
        Correlated(Gaussian(0.2, relative_to="value"), shared="tensor", group="die", chip=2),
        Gaussian(0.1),
    ],
    "drop_connect": DropConnect(0.3),
    "drop_connect_blocks": DropConnect(0.3, block=2, rescale=False),
    "drop_connect_straight": DropConnect(0.3, gradient="straight-through"),
    "quantize": Quantize(4),
    "quantize_affine_per_channel": Quantize(3, symmetric=False, per=0),
    "converter_range": Quantize(levels=6, low=-0.4, high=0.3),
    "rounded_per_tile": Quantize(4, tile=(3, 3)),
    "quantize_stochastic": Quantize(3, stochastic=True),
    "quantize_subset": Quantize(3, subset=0.5, block=2),
    "quantization_noise": QuantizationNoise(3),
    "quantization_noise_exact": QuantizationNoise(3, symmetric=False, per=0, gradient="exact"),
    "state_dependent": StateDependentNoise((0.05, 0.2)),
    "state_dependent_pieces_exact": StateDependentNoise(
        ((0.5, 0.1), (2.0, 0.2, -0.01)), breaks=(3.0,), threshold=1.5, g_max=10.0, gradient="exact"
    ),
    "stuck_at": StuckAt(0.2, high=0.1, low=0.1),
    "stuck_at_straight": StuckAt(0.1, low=0.2, levels=(-0.5, 0.5), gradient="straight-through"),
    "stuck_at_range": StuckAt(0.1, high=0.2, levels="range", per=0, chip=None, gradient="straight-through"),
    "bit_flip": BitFlip(0.05, bits=4),
    "float_bits": BitFlip(0.02, code="float", positions="mantissa"),
    "bit_flip_rare_frozen": BitFlip(0.015, bits=4, chip=1),
    "bit_flip_frozen": BitFlip(0.05, bits=4, chip=1),
    "programming": ProgrammingNoise(),
    "programming_drift_exact": ProgrammingNoise(time=3600.0, chip=2, compensate=True, gradient="exact"),
    "programming_single_tables": ProgrammingNoise(
        time=600.0,
        g_min=5.0,
        pairs=(),
        programming=((5.0, 1.0), (15.0, 2.0), (25.0, 1.5)),
        drift=(),
        shift=((0.0, (0.0,)), (3600.0, (1.0, -1.0))),
        relaxation=((0.0, (0.5,)), (3600.0, (1.0,))),
        read=((5.0, 0.2), (25.0, 0.5)),
        t_read=None,
        bounds=(0.0, 30.0),
    ),
    "programming_pairs_exact": ProgrammingNoise(
        time=600.0, g_min=1.0, pairs=(1.0, 3.0), stuck=(0.05, 0.05), compensate="global", gradient="exact"
    ),
    "temperature": Temperature(85.0),
    "temperature_exact": Temperature(0.0, gradient="exact"),
    "clip": Clip(1.0),
    "clip_bounds_straight": Clip(low=-0.2, high=0.3, gradient="straight-through"),
    "frozen": Frozen(Gaussian(0.2), chip=3),
    "frozen_beside_fresh": [Frozen(DropConnect(0.3)), Gaussian(0.02)],
    "clip_learned": LearnedClip(1.0),
    "protect": Protect(Gaussian(0.2, relative_to="absmax"), 0.25),
    "protect_exact": Protect(DropConnect(0.3), 0.25, scale=0.5),
    "learned": LearnedGaussian(0.1),
    "learned_factorised": LearnedGaussian(factorised=True),
    "variational": Variational(-2.0),
    "variational_dropout": VariationalDropout(0.1),
    "variational_dropout_per_unit_kingma": VariationalDropout(0.1, per=0, approximation="kingma"),
    "parametric": ParametricNoise(),
    "parametric_per_channel_exact": ParametricNoise(0.3, per=0, gradient="exact"),
    "custom": Custom(shrink),
    "custom_straight": Custom(shrink, gradient="straight-through"),
    "chain": [DropConnect(0.3), Gaussian(0.2)],
    "chain_of_hardware": [Clip(1.5), Quantize(4), StuckAt(0.1), Gaussian(0.1, relative_to="absmax")],
    "chain_learned": [Clip(1.5, gradient="straight-through"), Protect(LearnedGaussian(0.1), 0.5), Variational()],
}

# Laws that make the same of a weight in every forward.
STILL = {
    "quantize",
    "quantize_affine_per_channel",
    "rounded_per_tile",
    "converter_range",
    "stuck_at",
    "stuck_at_straight",
    "bit_flip_frozen",
    "frozen",
    "bit_flip_rare_frozen",
    "temperature",
    "temperature_exact",
    "clip",
    "clip_learned",
    "clip_bounds_straight",
}
# Those of them that make the same of two equal weights.
FIXED = STILL - {"stuck_at", "stuck_at_straight", "bit_flip_frozen", "bit_flip_rare_frozen", "frozen"}
LEARNED = {
    name
    for name in LAWS
    if name.startswith(("learned", "variational", "parametric", "chain_learned", "clip_learned"))
}
# Laws whose noisy weight does not have the clean weight as its mean.
BIASED = {name for name in STILL if not name.startswith(("bit_flip", "frozen"))} | {
    "bit_flip",
    "float_bits",
    "bit_flip_frozen",
    "bit_flip_rare_frozen",
    "chain_learned",
    "chain_of_hardware",
    "custom",
    "custom_straight",
    "drop_connect_blocks",
    "programming",
    "programming_drift_exact",
    "programming_single_tables",
    "programming_pairs_exact",
    "quantize_subset",
    "state_dependent_pieces_exact",
    "stuck_at_range",
}
# Laws whose noise is proportional to the factor.
LINEAR = {
    name
    for name in LAWS
    if name.startswith(
        ("gaussian", "uniform", "quantization_noise", "learned", "variational", "parametric", "custom")
    )
} | {"correlated_die", "correlated_smooth", "frozen", "protect", "state_dependent"}


def kinds_of_noise(std: float) -> dict[str, Callable[[nn.Module], nn.Module]]:
    """Each way in which noise gets into a forward, as a function that puts it on a model."""
    return {
        "weights": lambda model: add_weight_noise(model, std),
        "weights made again": lambda model: add_weight_noise(model, std, memory="recompute"),
        "flipout": lambda model: add_weight_noise(model, std, estimator="flipout"),
        "local": lambda model: add_weight_noise(model, std, estimator="local"),
        "activations": lambda model: add_activation_noise(model, std),
    }
