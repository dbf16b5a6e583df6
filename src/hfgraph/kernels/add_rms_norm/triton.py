"""Residual add and RMSNorm in one Triton kernel; the sum is rounded to its dtype before the norm sees it."""

from __future__ import annotations

import torch
from torch import Tensor

from hfgraph.kernels.launch import Launch
from hfgraph.kernels.rms_norm._rows import launches, normalise

AOT: tuple[Launch, ...] = launches(residual=True)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    multiplier: float = 1.0,
    offset: float = 0.0,
    compute_dtype: torch.dtype | None = None,
    scale_dtype: torch.dtype | None = None,
    round_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    divide: int = 0,
) -> tuple[Tensor, Tensor]:
    """The op's reference as one kernel: x and residual (..., D), weight (D,) or None; returns norm and sum, fresh and contiguous."""
    assert not divide  # refused by the guard
    normed, total = normalise(x, residual, weight, eps, multiplier, offset, compute_dtype, scale_dtype, round_dtype, weight_dtype, out_dtype)
    assert total is not None
    return normed, total
