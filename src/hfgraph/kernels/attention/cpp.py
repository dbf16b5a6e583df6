"""Attention of few queries over many keys, in C++ (`decode.h`): the operator's kernel is registered by the library itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfgraph.kernels import native

SOURCE = Path(__file__).with_name("decode.cpp")


def problem() -> str | None:
    """Why the kernel cannot run here, in words; None where it can."""
    return native.problem(SOURCE)


def attention(*args: Any, **kwargs: Any) -> Tensor:
    """The op's reference as one kernel: q (B, H, Q, D), k (B, G, K, D), v (B, G, K, E); returns (B, H, Q, E), fresh and contiguous."""
    if (found := problem()) is not None:
        raise RuntimeError(found)
    return torch.ops.hfgraph.attention__cpp(*args, **kwargs)
