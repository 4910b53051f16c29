"""Small models of many architectures of transformers, with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.zoo.checks import CHECKS, Animal

transformers = pytest.importorskip("transformers", minversion="5")

_WIDTH, _HEADS, _LAYERS, _TOKENS = 16, 4, 2, 40
# Whatever a configuration calls them.
_SIZES = {
    "hidden_size n_embd d_model dim embed_dim word_embed_proj_dim embedding_size": _WIDTH,
    "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads": _HEADS,
    "num_experts num_local_experts head_dim d_kv rotary_dim": 4,
    "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers": _LAYERS,
    "num_key_value_heads eos_token_id": 2,
    "vocab_size max_position_embeddings n_positions": _TOKENS,
    "intermediate_size d_ff encoder_ffn_dim decoder_ffn_dim ffn_dim hidden_dim": 24,
    "image_size": 32,
    "patch_size": 8,
    "pad_token_id": 0,
    "bos_token_id decoder_start_token_id": 1,
}
_STAGES = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 4}
_CONVOLUTIONS = {
    "conv_dim": [8, 8],
    "conv_kernel": [4, 4],
    "conv_stride": [2, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
_OWN: dict[str, dict[str, Any]] = {
    "swinv2": _STAGES,
    "convnext": {"hidden_sizes": [4, 8, 8, 8], "depths": [1, 1, 1, 1], "patch_size": 4},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]},
    "wav2vec2": _CONVOLUTIONS,
    "wav2vec2-conformer": _CONVOLUTIONS,
}
_KINDS = {
    "text": "gpt2 bert albert deberta-v2 llama gemma2 mixtral gpt_neox bloom mamba fnet modernbert",
    "translation": "t5",
    "image": "vit dinov2 swinv2 convnext resnet siglip_vision_model",
    "sound": "wav2vec2 wav2vec2-conformer",
}
KINDS = {name: kind for kind, names in _KINDS.items() for name in names.split()}


def _inputs(kind: str) -> Any:
    tokens = torch.randint(3, _TOKENS, (2, 5))
    by_kind: dict[str, Callable[[], dict[str, Any]]] = {
        "text": lambda: {"input_ids": tokens},
        "translation": lambda: {"input_ids": tokens, "decoder_input_ids": tokens[:, :3]},
        "image": lambda: {"pixel_values": torch.randn(1, 3, 32, 32)},
        "sound": lambda: {"input_values": torch.randn(1, 200)},
    }
    return (), by_kind[kind]()


def _animal(name: str) -> Animal:
    config = transformers.AutoConfig.for_model(name)
    for names, size in _SIZES.items():
        for one in names.split():
            if isinstance(getattr(config, one, None), (int, type(None))) and hasattr(config, one):
                setattr(config, one, size)
    for one, value in _OWN.get(name, {}).items():
        setattr(config, one, value)

    def make() -> nn.Module:
        model: nn.Module = transformers.AutoModel.from_config(copy.deepcopy(config))
        return model.eval()

    return Animal(make, lambda: _inputs(KINDS[name]))


@pytest.mark.filterwarnings("ignore:::transformers", "ignore::DeprecationWarning")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", KINDS)
def test_an_architecture_of_transformers(name: str, check: Callable[[Animal], None]) -> None:
    check(_animal(name))
