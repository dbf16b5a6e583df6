"""Residual add and LayerNorm in one Triton kernel; the sum is rounded to its dtype before the norm sees it."""

from __future__ import annotations

import torch
from torch import Tensor

from hfgraph.kernels.launch import Launch
from hfgraph.kernels.layer_norm._rows import launches, normalise

AOT: tuple[Launch, ...] = launches(residual=True)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    multiplier: float = 1.0,
    offset: float = 0.0,
    compute_dtype: torch.dtype | None = None,
    round_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    spelled: int = 0,
    divide: int = 0,
) -> tuple[Tensor, Tensor]:
    """The op's reference as one kernel: x and residual (..., D), weight and bias (D,) or None; returns norm and sum, fresh and contiguous."""
    assert not divide  # refused by the guard
    normed, total = normalise(x, residual, weight, bias, eps, multiplier, offset, compute_dtype, round_dtype, weight_dtype, out_dtype, spelled)
    assert total is not None
    return normed, total
