"""Fixtures of the model tests."""

from __future__ import annotations

import pytest
import transformers

transformers.logging.set_verbosity_error()


@pytest.fixture(params=["llama", "gemma2", "qwen3", "phi3", "mistral"])
def name(request: pytest.FixtureRequest) -> str:
    """Small models that differ in norms (offset, per head, around the block), projections (packed) and masks (sliding)."""
    return request.param
