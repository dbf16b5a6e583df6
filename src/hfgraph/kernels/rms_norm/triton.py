"""RMSNorm in Triton: float32 arithmetic, any strides, the reference's rounding points."""

from __future__ import annotations

import torch
from torch import Tensor

from hfgraph.kernels.launch import Launch
from hfgraph.kernels.rms_norm._rows import launches, normalise

AOT: tuple[Launch, ...] = launches(residual=False)


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    offset: float = 0.0,
    compute_dtype: torch.dtype | None = None,
    scale_dtype: torch.dtype | None = None,
    round_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    divide: int = 0,
) -> Tensor:
    """The op's reference as one kernel: x (..., D), weight (D,) or None; returns (..., D), fresh and contiguous."""
    assert not divide  # refused by the guard
    return normalise(x, None, weight, eps, 1.0, offset, compute_dtype, scale_dtype, round_dtype, weight_dtype, out_dtype)[0]
