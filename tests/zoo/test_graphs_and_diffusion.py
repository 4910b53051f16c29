"""Layers of torch_geometric and small models of diffusers, where these are installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.zoo.checks import CHECKS, Animal

EDGES = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])
GRAPHS: dict[str, Callable[[Any], nn.Module]] = {
    "GCN": lambda of: of.GCNConv(6, 4),
    "GAT": lambda of: of.GATConv(6, 4, heads=2),
    "GraphSAGE": lambda of: of.SAGEConv(6, 4),
    "GIN": lambda of: of.GINConv(nn.Linear(6, 4)),
    "Chebyshev": lambda of: of.ChebConv(6, 4, 2),
    "gated": lambda of: of.GatedGraphConv(6, 2),
    "FiLM": lambda of: of.FiLMConv(6, 4),
    "molecular fingerprints": lambda of: of.MFConv(6, 4),
    "GPS": lambda of: of.GPSConv(6, of.GCNConv(6, 6), heads=2),
    "two layers": lambda of: of.GAT(6, 8, 2),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", GRAPHS)
def test_a_layer_of_torch_geometric(name: str, check: Callable[[Animal], None]) -> None:
    of = pytest.importorskip("torch_geometric.nn")
    check(Animal(lambda: GRAPHS[name](of).eval(), lambda: ((torch.randn(5, 6), EDGES), {})))


_BLOCKS: dict[str, Any] = {"norm_num_groups": 4, "block_out_channels": (8,), "layers_per_block": 1}
DIFFUSION: dict[str, tuple[Callable[[Any], nn.Module], Callable[[], Any]]] = {
    "autoencoder": (
        lambda of: of.AutoencoderKL(latent_channels=2, **_BLOCKS),
        lambda: ((torch.randn(1, 3, 4, 4),), {}),
    ),
    "DiT": (
        lambda of: of.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            num_layers=1,
            sample_size=4,
            num_embeds_ada_norm=10,
            norm_num_groups=4,
        ),
        lambda: (
            (torch.randn(1, 4, 4, 4),),
            {"timestep": torch.tensor([3]), "class_labels": torch.tensor([1])},
        ),
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", DIFFUSION)
def test_a_model_of_diffusers(name: str, check: Callable[[Animal], None]) -> None:
    of = pytest.importorskip("diffusers")
    make, inputs = DIFFUSION[name]
    check(Animal(lambda: make(of).eval(), inputs))
