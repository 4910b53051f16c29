"""Which dimension of what a layer takes in is that of the examples."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from weightnoise._select.candidates import Candidate
from weightnoise._torch.modules import children, walk


def batch_dims(model: nn.Module, candidates: Sequence[Candidate], given: int | None) -> list[int]:
    """The dimension of the examples for the layer of each candidate.

    That of a convolution is the first. For a Linear layer it is what is given, or what the nearest module around
    it says, or its direct parts: their ``batch_first``, where they agree.
    """
    if given is None:
        modules = {name: node.module for node in walk(model) for name in node.names}
        said = {name: _said_by(module) for name, module in modules.items()}
    return [
        0
        if not isinstance(candidate.owner, nn.Linear)
        else _nearest(candidate.name.rpartition(".")[0], said)
        if given is None
        else given
        for candidate in candidates
    ]


def _said_by(module: nn.Module) -> int | None:
    around = [vars(one).get("batch_first") for one in (module, *children(module).values())]
    said = {one for one in around if isinstance(one, bool)}
    return int(not said.pop()) if len(said) == 1 else None


def _nearest(name: str, said: dict[str, int | None]) -> int:
    while name:
        name = name.rpartition(".")[0]
        dim = said.get(name)
        if dim is not None:
            return dim
    return 0
