"""Triton helpers for floats narrower than 32 bits: arithmetic is in float32, rounding happens where it is asked for.

Triton's interpreter keeps bfloat16 as bare 16-bit integers: it adds and multiplies the bit patterns, and its cast from
float32 cuts off instead of rounding. Kernels therefore widen right after a load and narrow right before a store through
these functions, which go through the bits when interpreted; compiled, they are plain casts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def widen(value):
    """A float tensor in float32; exact."""
    if INTERPRETED and value.dtype == tl.bfloat16:
        return (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return value.to(tl.float32)


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """A float32 tensor in `dtype`, rounded to nearest, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        # One NaN for all: a payload in the lower half alone would be cut off and leave an infinity.
        bits = tl.where(value == value, bits, 0x7FC00000)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(dtype)


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """A float32 tensor with the values that `dtype` can hold; None and float32 leave it alone."""
    if dtype is None or dtype == tl.float32:
        return value
    else:
        return widen(narrow(value, dtype))
