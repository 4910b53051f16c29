"""Embeddings whose noise costs what the rows cost that are looked up, and not the whole vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from weightnoise._noise.checkpoints import EffectiveControl
from weightnoise._noise.draws import bare
from weightnoise._noise.resting import can_rest
from weightnoise._noise.weight_noise import WeightNoise
from weightnoise._torch.export import refuse_export
from weightnoise._torch.modes import PLAIN, computes_numbers

LOOKUPS = (nn.Embedding.forward, nn.EmbeddingBag.forward)
_SHARE = 4  # A lookup of more than a quarter of the rows draws them all.


def forward_looked_up(noise: WeightNoise | None, layer: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    """Compute the layer's noisy output from its rows; None where the whole weight has to be made noisy."""
    effective = None if noise is None else noise.effective()
    if noise is None or effective is None:
        return None
    weight = vars(layer).get("weight", layer._parameters.get("weight"))  # As a read of the attribute finds it.
    tokens = args[0] if args else kwargs.get("input")
    if not _fits(noise, effective, layer, weight, tokens):
        return None
    refuse_export("weight", noise.name)
    draw = bare(noise.draw(weight, effective))
    index, places = torch.unique(tokens, return_inverse=True)
    rows = F.embedding(index, weight, noise.padding_row, sparse=layer.sparse)
    factor = noise.factor(effective)
    table = noise.handed.apply_to_rows(weight.detach(), rows, index, draw, factor)
    noise.lookout.note(noise, rows, table, factor)
    if noise.padding_row is not None:
        table = torch.where((index == noise.padding_row).unsqueeze(-1), rows, table)
    if isinstance(layer, nn.Embedding):
        return F.embedding(places, table)
    kwargs.pop("input", None)
    return _bag(layer, table, index, places, *args[1:], **kwargs)


def _fits(noise: WeightNoise, effective: EffectiveControl, layer: Any, weight: Any, tokens: Any) -> bool:
    return (
        type(weight) is nn.Parameter
        and weight.is_cpu
        and type(tokens) in PLAIN
        and computes_numbers()  # A compiler or a transformation does not know how many rows a batch looks up.
        and not layer.scale_grad_by_freq
        and 0 < tokens.numel() * _SHARE <= len(weight)
        and not (
            effective.held is not None and not torch.is_grad_enabled() and can_rest(noise, effective.held, weight)
        )
        and (noise.has_key(weight) if effective.held is None else _takes_rows_of_held(noise, weight))
    )


def _takes_rows_of_held(noise: WeightNoise, weight: Tensor) -> bool:
    # In shorter dtypes torch rounds a number by its place in memory: once in the middle of an array, and twice at
    # its end.
    return noise.takes_keys and weight.dtype in (torch.float32, torch.float64)


def _bag(
    layer: Any,
    table: Tensor,
    index: Tensor,
    places: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    padding = None
    if layer.padding_idx is not None:
        found = (index == layer.padding_idx).nonzero()
        padding = int(found) if len(found) else None
    return F.embedding_bag(
        places,
        table,
        offsets,
        mode=layer.mode,
        per_sample_weights=per_sample_weights,
        include_last_offset=layer.include_last_offset,
        padding_idx=padding,
    )
