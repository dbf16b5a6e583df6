"""Rotary position embedding of queries and keys in one Triton kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from hfgraph.kernels.launch import Launch
from hfgraph.kernels.rotate._turn import Spelling, launches, turned

AOT: tuple[Launch, ...] = launches(keys=True, norm=False)


def rope(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    half: int = 0,
    q_tail: int = 0,
    k_tail: int = 0,
    interleaved: int = 0,
    interleaved_out: int = 0,
    reverse: int = 0,
    complex_product: int = 0,
    compute_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The op's reference as one kernel: q and k (..., D); returns both, fresh and contiguous."""
    assert not complex_product  # refused by the guard
    how = Spelling(half, interleaved, interleaved_out, reverse, compute_dtype, out_dtype)
    queries, keys = turned(q, k, cos, sin, how, (q_tail, k_tail))
    return queries, keys
