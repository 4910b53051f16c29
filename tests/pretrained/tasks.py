"""The models, by name."""

from __future__ import annotations

from collections.abc import Callable

from tests.pretrained import faces, pronunciation, topics
from tests.pretrained.task import Task

TASKS: dict[str, Callable[[], Task]] = {
    "faces": faces.load,
    "pronunciation": pronunciation.load,
    "topics": topics.load,
}
