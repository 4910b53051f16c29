"""Noise on the weights of any PyTorch model: add it, train, switch it, remove it, ship."""

from weightnoise._activations import add_activation_noise, noisy_activations, remove_activation_noise
from weightnoise._clipping import clip_weights
from weightnoise._config import spec_from_config, spec_to_config
from weightnoise._contexts import force_noise, hold_noise, no_noise, scale_noise
from weightnoise._errors import (
    AbandonedContextWarning,
    AlreadyNoisyError,
    CleanReadWarning,
    ExportError,
    LearnedStrengthWarning,
    NoiseRoundsAwayWarning,
    NoMatchError,
    NondeterministicMetricWarning,
    NotNoisyError,
    NotVectorizedWarning,
    OptionError,
    OptionTypeError,
    RecomputedReadWarning,
    SpecError,
    TiedParameterError,
    UnsupportedActivationError,
    UnsupportedParameterError,
    WeightNoiseError,
    WorkerLostWarning,
)
from weightnoise._learned import kl_divergence, learned_strengths
from weightnoise._losses import gradient_penalty, perturb_loss
from weightnoise._plan import NoisePlan, PlannedNoise, plan_weight_noise
from weightnoise._prediction import Prediction, predict
from weightnoise._random.philox import engine
from weightnoise._recording import record_activations
from weightnoise._robustness.evaluate import evaluate_robustness
from weightnoise._robustness.goal import Tolerance
from weightnoise._robustness.layer_table import LayerNoise, LayerReport
from weightnoise._robustness.layers import layer_report
from weightnoise._robustness.report import RobustnessReport
from weightnoise._robustness.tolerance import find_level
from weightnoise._schedules import AdaptiveNoise, NoiseScheduler, cosine_ramp, linear_ramp, start_at
from weightnoise._sharing import share_noise
from weightnoise._steps import step_along
from weightnoise._weights import add_weight_noise, has_weight_noise, noisy_parameters, remove_weight_noise
from weightnoise.laws import (
    ActivationLaw,
    BitFlip,
    Chain,
    Clip,
    CurrentNoise,
    Custom,
    DropConnect,
    Gaussian,
    LearnedGaussian,
    LogNormal,
    NEFTune,
    Noise,
    ParametricNoise,
    ProgrammingNoise,
    Protect,
    QuantizationNoise,
    Quantize,
    SaltAndPepper,
    StuckAt,
    Temperature,
    Uniform,
    Variational,
    VariationalDropout,
)

__version__ = "0.1.0"

__all__ = [
    "AbandonedContextWarning",
    "ActivationLaw",
    "AdaptiveNoise",
    "AlreadyNoisyError",
    "BitFlip",
    "Chain",
    "CleanReadWarning",
    "Clip",
    "CurrentNoise",
    "Custom",
    "DropConnect",
    "ExportError",
    "Gaussian",
    "LayerNoise",
    "LayerReport",
    "LearnedGaussian",
    "LearnedStrengthWarning",
    "LogNormal",
    "NEFTune",
    "NoMatchError",
    "Noise",
    "NoisePlan",
    "NoiseRoundsAwayWarning",
    "NoiseScheduler",
    "NondeterministicMetricWarning",
    "NotNoisyError",
    "NotVectorizedWarning",
    "OptionError",
    "OptionTypeError",
    "ParametricNoise",
    "PlannedNoise",
    "Prediction",
    "ProgrammingNoise",
    "Protect",
    "QuantizationNoise",
    "Quantize",
    "RecomputedReadWarning",
    "RobustnessReport",
    "SaltAndPepper",
    "SpecError",
    "StuckAt",
    "Temperature",
    "TiedParameterError",
    "Tolerance",
    "Uniform",
    "UnsupportedActivationError",
    "UnsupportedParameterError",
    "Variational",
    "VariationalDropout",
    "WeightNoiseError",
    "WorkerLostWarning",
    "add_activation_noise",
    "add_weight_noise",
    "clip_weights",
    "cosine_ramp",
    "engine",
    "evaluate_robustness",
    "find_level",
    "force_noise",
    "gradient_penalty",
    "has_weight_noise",
    "hold_noise",
    "kl_divergence",
    "layer_report",
    "learned_strengths",
    "linear_ramp",
    "no_noise",
    "noisy_activations",
    "noisy_parameters",
    "perturb_loss",
    "plan_weight_noise",
    "predict",
    "record_activations",
    "remove_activation_noise",
    "remove_weight_noise",
    "scale_noise",
    "share_noise",
    "spec_from_config",
    "spec_to_config",
    "start_at",
    "step_along",
]
