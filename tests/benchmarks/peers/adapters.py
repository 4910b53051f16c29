"""How each peer puts Gaussian noise on the weights of Linear layers, with its own means.

An adapter gets a plain model and the standard deviation, and returns what a step calls. It runs in the peer's
environment alone, so that it imports the peer itself.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn


@dataclass(frozen=True)
class Noisy:
    """A model with a peer's noise on it.

    Attributes:
        model: what is called and trained.
        around: entered for each forward and backward.
    """

    model: nn.Module
    around: Callable[[], AbstractContextManager[object]] = nullcontext


Adapter: TypeAlias = Callable[[nn.Module, float], Noisy]


def load(name: str) -> Any:
    """A module of a peer."""
    return importlib.import_module(name)


def ensure_torchvision() -> None:
    """Have torchvision import where torch is a build for the CPU and torchvision, as PyPI has it, one for CUDA.

    It then lacks its operators, of which no peer's layer needs any, and stops at the two that it describes itself.
    """
    try:
        load("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", signature)
        load("torchvision")


def rho(std: float) -> float:
    """What softplus makes ``std`` of."""
    return math.log(math.expm1(std))


def replace_linear(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """Put another layer in the place of each Linear, with the old weight and bias where it has their means."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(parent, name, make(layer))
    return model


@torch.no_grad()
def means(layer: nn.Module, of: nn.Linear, weight: str = "weight_mu", bias: str = "bias_mu") -> nn.Module:
    """The layer with the weight and bias of another as its means."""
    getattr(layer, weight).copy_(of.weight)
    if of.bias is not None:
        getattr(layer, bias).copy_(of.bias)
    return layer


def with_layers(model: nn.Module, layer: Callable[..., nn.Module]) -> Noisy:
    """The model with a layer of a peer, made of the two sizes and ``bias``, in the place of each Linear."""

    def make(old: nn.Linear) -> nn.Module:
        return means(layer(old.in_features, old.out_features, bias=old.bias is not None), old)

    return Noisy(replace_linear(model, make))


def torchbnn(model: nn.Module, std: float) -> Noisy:
    """BayesLinear: weight and bias with a learned standard deviation, a fresh draw per forward."""
    return with_layers(model, partial(load("torchbnn").BayesLinear, 0.0, std))


def bayesian_torch(model: nn.Module, std: float) -> Noisy:
    """dnn_to_bnn: weight and bias with a learned standard deviation, a fresh draw per forward."""
    options = {
        "prior_mu": 0.0,
        "prior_sigma": 1.0,
        "posterior_mu_init": 0.0,
        "posterior_rho_init": rho(std),
        "type": "Reparameterization",
        "moped_enable": False,  # It makes the noise relative to each weight.
    }
    old = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    load("bayesian_torch.models.dnn_to_bnn").dnn_to_bnn(model, options)
    new = [layer for layer in model.modules() if hasattr(layer, "mu_weight")]
    for layer, of in zip(new, old, strict=True):
        means(layer, of, "mu_weight", "mu_bias")
    return Noisy(model)


def blitz(model: nn.Module, std: float) -> Noisy:
    """BayesianLinear: learned standard deviations; each forward also sums the log-densities of its draw."""
    return with_layers(model, partial(load("blitz.modules").BayesianLinear, posterior_rho_init=rho(std)))


def torch_uncertainty(model: nn.Module, std: float) -> Noisy:
    """BayesLinear: learned standard deviations; each forward also sums the log-densities of its draw."""
    ensure_torchvision()
    bayes = load("torch_uncertainty.layers.bayesian").BayesLinear
    return with_layers(model, partial(bayes, sigma_init=rho(std)))


def torchbayesian(model: nn.Module, std: float) -> Noisy:
    """BayesianModule: every parameter, biases too, with a learned standard deviation and a draw per read."""
    bnn = load("torchbayesian.bnn")
    model = bnn.BayesianModule(model, variational_posterior="pretrained_gaussian")
    for name, parameter in model.named_parameters():
        if name.endswith(".rho"):
            nn.init.constant_(parameter, rho(std))
    return Noisy(model)


def torchrl(model: nn.Module, std: float) -> Noisy:
    """NoisyLinear: factorised noise of rank one, learned strength, drawn by reset_noise before each forward.

    A product of two numbers whose absolute values have their root taken has a standard deviation of 0.8.
    """
    modules = load("torchrl.modules")

    def make(old: nn.Linear) -> nn.Module:
        start = std * math.sqrt(old.in_features)
        bias = old.bias is not None
        layer = modules.NoisyLinear(
            old.in_features, old.out_features, bias=bias, std_init=start, use_exploration_type=False
        )
        return means(layer, old)

    replace_linear(model, make).train()

    def around() -> AbstractContextManager[object]:
        model.apply(modules.reset_noise)
        return nullcontext()

    return Noisy(model, around)


def noise_injection(model: nn.Module, std: float) -> Noisy:
    """with_noise: adds to the weights in place and subtracts the same numbers after the backward."""
    package = load("noise_injection")
    generator = package.generators.gaussian(std)
    weights = package.selectors.by_name(r"weight$")
    return Noisy(model, lambda: package.with_noise(model, generator, weights))


def analogvnn(model: nn.Module, std: float) -> Noisy:
    """PseudoParameter: torch's parametrize with a second Parameter for the noisy weight; biases are clean."""
    noise = load("analogvnn.nn.noise.GaussianNoise").GaussianNoise
    pseudo = load("analogvnn.parameter.PseudoParameter").PseudoParameter
    for layer in list(model.modules()):
        if isinstance(layer, nn.Linear):
            with torch.no_grad():
                pseudo.parameterize(layer, "weight", noise(std=std, precision=8))
    return Noisy(model)


def aihwkit(model: nn.Module, std: float) -> Noisy:
    """convert_to_analog with the tile in torch: an exact product, and AddNormal on the weights in train mode."""
    configs = load("aihwkit.simulator.configs")
    config = configs.TorchInferenceRPUConfig()
    config.forward.is_perfect = True
    config.modifier = configs.WeightModifierParameter(
        type=configs.WeightModifierType.ADD_NORMAL, std_dev=std, rel_to_actual_wmax=False, assumed_wmax=1.0
    )
    return Noisy(load("aihwkit.nn.conversion").convert_to_analog(model, config).train())


def aihwkit_lightning(model: nn.Module, std: float) -> Noisy:
    """convert_to_analog with AddNormal in train mode, which is relative to a layer's largest weight.

    The share is chosen for each layer so that the noise has ``std`` at the start.
    """
    configs = load("aihwkit_lightning.simulator.configs")
    kinds = load("aihwkit_lightning.simulator.parameters")

    def of_layer(name: str, layer: nn.Module, config: Any) -> Any:
        if isinstance(layer, nn.Linear):
            config.modifier.noise_type = kinds.WeightNoiseInjectionType.ADD_NORMAL
            config.modifier.std_dev = std / float(layer.weight.detach().abs().max())
        return config

    convert = load("aihwkit_lightning.nn.conversion").convert_to_analog
    config = configs.TorchInferenceRPUConfig()
    config.mapping.max_input_size = -1  # One tile, whatever the size.
    return Noisy(convert(model, config, specific_rpu_config_fun=of_layer).train())


ADAPTERS: dict[str, Adapter] = {
    "aihwkit": aihwkit,
    "aihwkit-lightning": aihwkit_lightning,
    "analogvnn": analogvnn,
    "bayesian-torch": bayesian_torch,
    "blitz-bayesian-pytorch": blitz,
    "noise-injection": noise_injection,
    "torch-uncertainty": torch_uncertainty,
    "torchbayesian": torchbayesian,
    "torchbnn": torchbnn,
    "torchrl": torchrl,
}
