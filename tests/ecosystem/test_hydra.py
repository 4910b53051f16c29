"""Specs from configurations of Hydra and OmegaConf, as they hand them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import weightnoise as wn

omegaconf = pytest.importorskip("omegaconf", reason="is in the extra 'ecosystem'")
hydra = pytest.importorskip("hydra", reason="is in the extra 'ecosystem'")

SPEC = """
std: 0.1
noise:
  - {match: encoder.*, law: {_target_: weightnoise.Gaussian, std: "${std}", relative_to: absmax}}
  - match: class:torch.nn.LSTM
    law:
      - {_target_: weightnoise.Clip, k: 2.0}
      - {type: StuckAt, zero: 0.01, levels: [-1.0, 1.0]}
  - {match: head.*, law: null}
patterns:
  encoder.*: {_target_: weightnoise.Gaussian, std: 0.1}
  head.*: null
chain:
  - {_target_: weightnoise.Clip, k: 2.0}
  - {_target_: weightnoise.Gaussian, std: 0.1}
"""
EXPECTED = {
    "encoder.*": wn.Gaussian(0.1, relative_to="absmax"),
    nn.LSTM: [wn.Clip(2.0), wn.StuckAt(0.01, levels=(-1.0, 1.0))],
    "head.*": None,
}


def composed(folder: Path, *overrides: str) -> Any:
    (folder / "config.yaml").write_text(SPEC)
    with hydra.initialize_config_dir(str(folder), version_base=None):
        return hydra.compose("config", overrides=list(overrides))


def test_configurations_are_taken_whole(tmp_path: Path) -> None:
    config = composed(tmp_path)
    assert isinstance(config.noise, omegaconf.ListConfig)
    assert wn.spec_from_config(config.noise) == EXPECTED
    assert isinstance(config.patterns, omegaconf.DictConfig)
    assert wn.spec_from_config(config.patterns) == {"encoder.*": wn.Gaussian(0.1), "head.*": None}
    assert wn.spec_from_config(config.chain) == [wn.Clip(2.0), wn.Gaussian(0.1)]
    assert wn.spec_from_config(config.noise[0].law) == wn.Gaussian(0.1, relative_to="absmax")


def test_an_override_reaches_a_law_by_its_place(tmp_path: Path) -> None:
    config = composed(tmp_path, "noise.0.law.std=0.3", "noise.1.law.0.k=1.5")
    spec: Any = wn.spec_from_config(config.noise)
    assert spec["encoder.*"] == wn.Gaussian(0.3, relative_to="absmax")
    assert spec[nn.LSTM][0] == wn.Clip(1.5)
    spec = wn.spec_from_config(composed(tmp_path, "std=0.5").noise)
    assert spec["encoder.*"].std == 0.5


def test_hydra_makes_the_laws_itself(tmp_path: Path) -> None:
    config = composed(tmp_path)
    made = hydra.utils.instantiate(config.patterns, _convert_="all")
    assert made == wn.spec_from_config(config.patterns)
    law = hydra.utils.instantiate(config.noise[0].law)
    assert law == wn.Gaussian(0.1, relative_to="absmax")
    assert hydra.utils.instantiate(config.chain, _convert_="all") == [wn.Clip(2.0), wn.Gaussian(0.1)]


def test_a_value_that_is_missing_is_an_error(tmp_path: Path) -> None:
    config = omegaconf.OmegaConf.create({"*": {"type": "Gaussian", "std": "???"}})
    with pytest.raises(omegaconf.MissingMandatoryValue, match="std"):
        wn.spec_from_config(config)
