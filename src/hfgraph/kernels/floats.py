"""Triton helpers for floats narrower than 32 bits: arithmetic is in float32, rounding happens where it is asked for.

Triton's interpreter keeps bfloat16 as bare 16-bit integers: it adds and multiplies the bit patterns, and its cast from
float32 cuts off instead of rounding. Kernels therefore widen right after a load and narrow right before a store through
these functions, which go through the bits when interpreted; compiled, they are plain casts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def widen(value):
    """A float tensor in float32; exact."""
    if INTERPRETED and value.dtype == tl.bfloat16:
        wide = (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = value.to(tl.float32)
    return wide


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """A float32 tensor in `dtype`, rounded to nearest, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        # One NaN for all: a payload in the lower half alone would be cut off and leave an infinity.
        bits = tl.where(value == value, bits, 0x7FC00000)
        narrowed = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        narrowed = value.to(dtype)
    return narrowed


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """A float32 tensor with the values that `dtype` can hold; None and float32 leave it alone."""
    if dtype is not None and dtype != tl.float32:
        value = widen(narrow(value, dtype))
    return value


@triton.jit
def operand(value, dtype: tl.constexpr):
    """A float tensor as a factor of `tl.dot`: in `dtype`; interpreted, the same numbers in float32."""
    if INTERPRETED:
        value = rounded(widen(value), dtype)
    elif value.dtype != dtype:
        value = narrow(value, dtype)
    return value
