"""Noise on the weights of any PyTorch model: add it, train, switch it, remove it, ship."""

from weightnoise._contexts import force_noise, hold_noise, no_noise, scale_noise
from weightnoise._errors import (
    AlreadyNoisyError,
    ExportError,
    NoiseRoundsAwayWarning,
    NoMatchError,
    NotNoisyError,
    SpecError,
    TiedParameterError,
    UnsupportedParameterError,
    WeightNoiseError,
)
from weightnoise._plan import NoisePlan, PlannedNoise, plan_weight_noise
from weightnoise._weights import add_weight_noise, has_weight_noise, noisy_parameters, remove_weight_noise
from weightnoise.laws import Chain, Custom, DropConnect, Gaussian, Noise, Uniform

__version__ = "0.1.0"

__all__ = [
    "AlreadyNoisyError",
    "Chain",
    "Custom",
    "DropConnect",
    "ExportError",
    "Gaussian",
    "NoMatchError",
    "Noise",
    "NoisePlan",
    "NoiseRoundsAwayWarning",
    "NotNoisyError",
    "PlannedNoise",
    "SpecError",
    "TiedParameterError",
    "Uniform",
    "UnsupportedParameterError",
    "WeightNoiseError",
    "add_weight_noise",
    "force_noise",
    "has_weight_noise",
    "hold_noise",
    "no_noise",
    "noisy_parameters",
    "plan_weight_noise",
    "remove_weight_noise",
    "scale_noise",
]
