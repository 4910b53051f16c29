"""Noise on the weights of any PyTorch model: add it, train, switch it, remove it, ship."""

from weightnoise._clipping import clip_weights
from weightnoise._config import spec_from_config, spec_to_config
from weightnoise._contexts import force_noise, hold_noise, no_noise, scale_noise
from weightnoise._errors import (
    AlreadyNoisyError,
    ExportError,
    LearnedStrengthWarning,
    NoiseRoundsAwayWarning,
    NoMatchError,
    NotNoisyError,
    SpecError,
    TiedParameterError,
    UnsupportedParameterError,
    WeightNoiseError,
)
from weightnoise._learned import kl_divergence, learned_strengths
from weightnoise._losses import gradient_penalty, perturb_loss
from weightnoise._plan import NoisePlan, PlannedNoise, plan_weight_noise
from weightnoise._recording import record_activations
from weightnoise._schedules import AdaptiveNoise, NoiseScheduler, cosine_ramp, linear_ramp, start_at
from weightnoise._weights import add_weight_noise, has_weight_noise, noisy_parameters, remove_weight_noise
from weightnoise.laws import (
    BitFlip,
    Chain,
    Clip,
    Custom,
    DropConnect,
    Gaussian,
    LearnedGaussian,
    LogNormal,
    Noise,
    ParametricNoise,
    ProgrammingNoise,
    Protect,
    QuantizationNoise,
    Quantize,
    StuckAt,
    Temperature,
    Uniform,
    Variational,
)

__version__ = "0.1.0"

__all__ = [
    "AdaptiveNoise",
    "AlreadyNoisyError",
    "BitFlip",
    "Chain",
    "Clip",
    "Custom",
    "DropConnect",
    "ExportError",
    "Gaussian",
    "LearnedGaussian",
    "LearnedStrengthWarning",
    "LogNormal",
    "NoMatchError",
    "Noise",
    "NoisePlan",
    "NoiseRoundsAwayWarning",
    "NoiseScheduler",
    "NotNoisyError",
    "ParametricNoise",
    "PlannedNoise",
    "ProgrammingNoise",
    "Protect",
    "QuantizationNoise",
    "Quantize",
    "SpecError",
    "StuckAt",
    "Temperature",
    "TiedParameterError",
    "Uniform",
    "UnsupportedParameterError",
    "Variational",
    "WeightNoiseError",
    "add_weight_noise",
    "clip_weights",
    "cosine_ramp",
    "force_noise",
    "gradient_penalty",
    "has_weight_noise",
    "hold_noise",
    "kl_divergence",
    "learned_strengths",
    "linear_ramp",
    "no_noise",
    "noisy_parameters",
    "perturb_loss",
    "plan_weight_noise",
    "record_activations",
    "remove_weight_noise",
    "scale_noise",
    "spec_from_config",
    "spec_to_config",
    "start_at",
]
