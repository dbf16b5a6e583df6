"""Triton's side of `strides.Rows`: where a row of a tensor with up to three leading dims begins."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(tensor, row, size1, size2, stride0, stride1, stride2):
    """Where each row begins in a tensor whose leading dims are (any, size1, size2); None stays None."""
    if tensor is not None:
        outer = row // size2
        # A row number fits 32 bits, where division is cheap; an offset may not.
        tensor += (outer // size1).to(tl.int64) * stride0 + (outer % size1).to(tl.int64) * stride1 + (row % size2).to(tl.int64) * stride2
    return tensor
