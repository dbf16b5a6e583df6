"""What tests of native kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def poisoned_cpu() -> Iterator[None]:
    """Fresh memory is NaN: an element that the kernel does not write shows. One thread: these are small calls."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(8).isnan().all(), "torch.empty is not poisoned"
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
