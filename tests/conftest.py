"""Every test starts from the same random state on one thread."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("default")


# The models here are tiny; two threads that wait for each other on a busy machine take many times longer.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    # What the inductor of torch 2.5 compiles switches subnormal numbers off for the whole process, once loaded.
    torch.set_flush_denormal(False)
