"""Norms of queries and keys and their rotation in one Triton kernel: what lies between them stays in registers."""

from __future__ import annotations

import torch
from torch import Tensor

from hfgraph.kernels.launch import Launch
from hfgraph.kernels.rotate._turn import Norm, Spelling, launches, turned

AOT: tuple[Launch, ...] = launches(keys=True, norm=True)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    offset: float = 0.0,
    compute_dtype: torch.dtype | None = None,
    round_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    divide: int = 0,
    half: int = 0,
    q_tail: int = 0,
    k_tail: int = 0,
    interleaved: int = 0,
    interleaved_out: int = 0,
    reverse: int = 0,
    swap: int = 0,
) -> tuple[Tensor, Tensor]:
    """The op's reference as one kernel: q and k (..., D), weights (D,); returns both, fresh and contiguous."""
    assert not divide  # refused by the guard
    q, k = (q.transpose(-3, -2), k.transpose(-3, -2)) if swap else (q, k)
    norm = Norm(q_weight, k_weight, eps, offset, compute_dtype, round_dtype, weight_dtype, out_dtype)
    queries, keys = turned(q, k, cos, sin, Spelling(half, interleaved, interleaved_out, reverse), (q_tail, k_tail), norm)
    return queries, keys
