"""Rotary position embedding of one tensor in Triton: any strides, the reference's rounding points."""

from __future__ import annotations

import torch
from torch import Tensor

from hfgraph.kernels.launch import Launch
from hfgraph.kernels.rotate._turn import Spelling, launches, turned

AOT: tuple[Launch, ...] = launches(keys=False, norm=False)


def rotate(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    half: int = 0,
    tail: int = 0,
    interleaved: int = 0,
    interleaved_out: int = 0,
    reverse: int = 0,
    complex_product: int = 0,
    compute_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The op's reference as one kernel: x (..., D); returns (..., D), fresh and contiguous."""
    assert not complex_product  # refused by the guard
    how = Spelling(half, interleaved, interleaved_out, reverse, compute_dtype, out_dtype)
    return turned(x, None, cos, sin, how, (tail, 0))[0]
