"""What tests of every layer share: the small real model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A test's time says nothing of the code: the machine may be busy.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory in float32, made by ``make model``."""
    path = REPOSITORY / ".models" / "SmolLM2-135M-Instruct"
    assert (path / "config.json").is_file(), "the small real model is missing: run `make model`"
    return path
