"""All sections, by the names that the command line and the page know."""

from __future__ import annotations

from tests.benchmarks import (
    compiled,
    draws,
    embeddings,
    growth,
    held,
    layers,
    memory,
    moves,
    numbers,
    prices,
    real,
    small,
    steps,
    tensors,
    together,
)
from tests.benchmarks.options import Section
from tests.benchmarks.peers import section as peers

SECTIONS: dict[str, Section] = {
    "steps": Section(steps.run, steps.table),
    "compiled": Section(compiled.run, compiled.table),
    "growth": Section(growth.run, growth.table),
    "tensors": Section(tensors.run, tensors.table),
    "small": Section(small.run, small.table),
    "layers": Section(layers.run, layers.table),
    "memory": Section(memory.run, memory.table),
    "draws": Section(draws.run, draws.table),
    "held": Section(held.run, held.table),
    "together": Section(together.run, together.table),
    "embeddings": Section(embeddings.run, embeddings.table),
    "moves": Section(moves.run, moves.table),
    "numbers": Section(numbers.run, numbers.table),
    "prices": Section(prices.run, prices.table),
    "real": Section(real.run, real.table),
    "peers": Section(peers.measure, peers.table),
}

ON_REQUEST = ("real",)  # Minutes and gigabytes.
