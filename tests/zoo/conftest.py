"""Options of the zoo's tests: a seed for weights, inputs and samples, and whether golden counts are compared or written."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def seed() -> int:
    """`HFGRAPH_SEED=2 pytest tests/zoo` tries other weights, inputs and samples."""
    return int(os.environ.get("HFGRAPH_SEED", "1"))
