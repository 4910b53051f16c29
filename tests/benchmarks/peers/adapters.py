"""How each peer puts Gaussian noise on the weights of a model, with its own means and as far as they go.

An adapter gets a plain model and the standard deviation, and returns what a step calls. It runs in the peer's
environment alone, so that it imports the peer itself.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Container
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from tests.benchmarks.peers.replacing import Noisy, TimeFirst, means, replace, with_layers

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


def torchbnn(model: nn.Module, std: float) -> Noisy:
    """BayesLinear and BayesConv2d: weight and bias with a learned standard deviation, a fresh draw per forward."""
    peer = load("torchbnn")
    return with_layers(model, partial(peer.BayesLinear, 0.0, std), partial(peer.BayesConv2d, 0.0, std))


def bayesian_torch(model: nn.Module, std: float) -> Noisy:
    """dnn_to_bnn: weight and bias with a learned standard deviation, a fresh draw per forward.

    It stops at the Linear of an attention, and its LSTM has the examples first, a sum for each time step.
    """
    options = {
        "prior_mu": 0.0,
        "prior_sigma": 1.0,
        "posterior_mu_init": 0.0,
        "posterior_rho_init": rho(std),
        "type": "Reparameterization",
        "moped_enable": False,  # It makes the noise relative to each weight.
    }
    kinds = {nn.Linear: "weight", nn.Conv2d: "kernel"}
    old = [layer for layer in model.modules() if type(layer) in kinds]
    load("bayesian_torch.models.dnn_to_bnn").dnn_to_bnn(model, options)
    new = [m for m in model.modules() if any(hasattr(m, f"mu_{kind}") for kind in kinds.values())]
    lstms = {type(m): TimeFirst for m in model.modules() if "LSTM" in type(m).__name__}
    for layer, of in zip([m for m in new if not _inside(m, model, lstms)], old, strict=True):
        means(layer, of, f"mu_{kinds[type(of)]}", "mu_bias")
    return Noisy(replace(model, lstms))


def _inside(layer: nn.Module, model: nn.Module, kinds: Container[type]) -> bool:
    return any(layer in list(m.modules()) for m in model.modules() if type(m) in kinds)


def blitz(model: nn.Module, std: float) -> Noisy:
    """Its Linear, Conv2d and LSTM: learned standard deviations.

    Each forward also sums the log-densities of its draw. An LSTM starts from its own means.
    """
    peer = load("blitz.modules")
    kinds = peer.BayesianLinear, peer.BayesianConv2d, peer.BayesianLSTM
    return with_layers(model, *(partial(kind, posterior_rho_init=rho(std)) for kind in kinds))


def torch_uncertainty(model: nn.Module, std: float) -> Noisy:
    """Its Linear and Conv2d: learned standard deviations; each forward also sums the log-densities of its draw."""
    ensure_torchvision()
    peer = load("torch_uncertainty.layers.bayesian")
    return with_layers(
        model, *(partial(kind, sigma_init=rho(std)) for kind in (peer.BayesLinear, peer.BayesConv2d))
    )


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

    def make(old: Any) -> nn.Module:
        start = std * math.sqrt(old.in_features)
        bias = old.bias is not None
        layer = modules.NoisyLinear(
            old.in_features, old.out_features, bias=bias, std_init=start, use_exploration_type=False
        )
        return means(layer, old)

    replace(model, {nn.Linear: make}).train()

    def around() -> AbstractContextManager[object]:
        model.apply(modules.reset_noise)
        return nullcontext()

    return Noisy(model, around)


def noise_injection(model: nn.Module, std: float) -> Noisy:
    """with_noise: adds to the weights in place and subtracts the same numbers after the backward."""
    package = load("noise_injection")
    generator = package.generators.gaussian(std)
    weights = package.selectors.by_name(r"weight(_[ih]h_l0)?$")
    return Noisy(model, lambda: package.with_noise(model, generator, weights), in_place=True)


def analogvnn(model: nn.Module, std: float) -> Noisy:
    """PseudoParameter: torch's parametrize with a second Parameter for the noisy weight; biases are clean."""
    noise = load("analogvnn.nn.noise.GaussianNoise").GaussianNoise
    pseudo = load("analogvnn.parameter.PseudoParameter").PseudoParameter
    for layer in list(model.modules()):
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if parameter.ndim >= 2:
                with torch.no_grad():
                    pseudo.parameterize(layer, name, noise(std=std, precision=8))
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
        if isinstance(layer, nn.Linear | nn.Conv2d):
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
