"""What every test gets: no network, one thread per worker, quiet libraries, fixed seeds, and nothing compiled by a test before it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def a_fresh_start() -> Iterator[None]:
    """Seeds are set, and nothing that another test compiled is left: neither its code nor its budget of recompilations."""
    torch.manual_seed(0)
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
    yield


@pytest.fixture(scope="session", autouse=True)
def quiet_libraries() -> None:
    """Dynamo logs each graph break, transformers each odd argument; the tests say themselves what they expect."""
    import logging

    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    logging.getLogger("torch.__trace").disabled = True  # pytest would print its thousands of empty lines with every failure
    if "transformers" in sys.modules:
        sys.modules["transformers"].logging.set_verbosity_error()
