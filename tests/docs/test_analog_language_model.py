"""docs/analog_language_model.py prints the tables of its guide, from the code of the guide."""

from __future__ import annotations

import re

import pytest
import torch
from torch.testing import assert_close

from tests.docs import DOCS, script


def rows(text: str) -> dict[str, list[str]]:
    """The cells of all tables, by the first of each row."""
    lines = [line.strip("|\n ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first: cells for first, *cells in lines}


@pytest.mark.slow
def test_a_small_run_prints_the_rows_of_the_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.random.fork_rng(devices=[]):
        script("analog_language_model", monkeypatch).main(["--seeds", "2", "--chips", "2", "--steps", "3", "2"])
    printed, page = rows(capsys.readouterr().out), (DOCS / "guides" / "analog-language-model.md").read_text()
    kept = rows(page[page.index("## Twelve trainings") :])
    assert printed.keys() == kept.keys()
    for name, cells in printed.items():
        assert len(cells) == len(kept[name]) == 8
        assert [cell.count("±") for cell in cells] == [cell.count("±") for cell in kept[name]]
    assert all(re.fullmatch(r"\d\.\d{3} ± \d\.\d{3}", cell) for cell in printed["plain"])


def test_the_errors_over_trainings_and_chips(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = script("analog_language_model", monkeypatch).errors
    generator = torch.Generator().manual_seed(0)
    trainings, chips = (torch.randn(size, generator=generator).double() for size in (7, 5))
    values = 3.0 + trainings.unsqueeze(1) + chips
    mean, over_trainings, over_chips = map(torch.tensor, errors(values))
    assert_close(mean.double(), values.mean())
    assert_close(over_trainings.double(), trainings.std() / 7**0.5, rtol=1e-6, atol=1e-6)
    assert_close(over_chips.double(), chips.std() / 5**0.5, rtol=1e-6, atol=1e-6)
    assert errors(values[:1])[1] != errors(values[:1])[1]  # nan: one training has none.
