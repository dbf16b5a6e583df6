"""Mixtures of experts in C++ (`experts.h`): the operator's kernel is registered by the library itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfgraph.kernels import native

SOURCE = Path(__file__).with_name("experts.cpp")


def problem() -> str | None:
    """Why the kernel cannot run here, in words; None where it can."""
    return native.problem(SOURCE)


def moe(*args: Any, **kwargs: Any) -> Tensor:
    """The op's reference as one kernel: x (T, H), ids and weights (T, K), gate_up (E, 2I or I, H), down (E, H, I); returns (T, H), fresh and contiguous."""
    if (found := problem()) is not None:
        raise RuntimeError(found)
    return torch.ops.hfgraph.moe__cpp(*args, **kwargs)
