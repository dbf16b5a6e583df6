"""Which calls each kernel takes, and at which it is faster, from shapes, dtypes and scalars: no size is fixed by asking."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hfgraph.kernels.glu import ACTIVATIONS

_IN_CPP = (torch.float32, torch.bfloat16)
_IN_TRITON = (*_IN_CPP, torch.float16)


def fits_triton(
    x: Tensor, expert_ids: Tensor, expert_weights: Tensor, gate_up: Tensor, down: Tensor, gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None, activation: str = "silu", alpha: float = 1.0, gate_max: float | None = None, act_max: float | None = None,
    up_min: float | None = None, up_max: float | None = None, up_offset: float = 0.0, interleaved: int = 0, weights_first: int = 0,
) -> bool:  # fmt: skip
    """Experts in one float dtype of at most 32 bits, tokens and weights in any of these; any layout; only the number of tokens may be a symbol."""
    del alpha, gate_max, act_max, up_min, up_max, up_offset, interleaved, weights_first
    narrow = all(t.dtype in _IN_TRITON for t in (x, expert_weights, gate_up))
    return narrow and activation in ACTIVATIONS and _agree(x, expert_ids, expert_weights, gate_up, down, gate_up_bias, down_bias)


def fits_cpp(
    x: Tensor, expert_ids: Tensor, expert_weights: Tensor, gate_up: Tensor, down: Tensor, gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None, activation: str = "silu", alpha: float = 1.0, gate_max: float | None = None, act_max: float | None = None,
    up_min: float | None = None, up_max: float | None = None, up_offset: float = 0.0, interleaved: int = 0, weights_first: int = 0,
) -> bool:  # fmt: skip
    """float32 or bfloat16 throughout, but for weights of the router; matrices with dense rows or dense columns; only the number of tokens may be a symbol."""
    del alpha, gate_max, act_max, up_min, up_max, up_offset, interleaved
    if x.dtype not in _IN_CPP or gate_up.dtype is not x.dtype or activation not in ACTIVATIONS:
        return False
    routed = expert_weights.dtype in ((x.dtype,) if weights_first else (x.dtype, torch.float32))
    agree = routed and _agree(x, expert_ids, expert_weights, gate_up, down, gate_up_bias, down_bias)
    return agree and _lie_densely(x, gate_up, down, gate_up_bias, down_bias)


# Rows of an expert, on average, above which products of float32 are PyTorch's own, and what stands around them costs more here.
_MANY = 64


def cpp_wins(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, gate_up: Tensor, down: Tensor, *rest: Any, **named: Any) -> bool:
    """Where benchmarks/moe.py shows a gain over grouped products on AVX2: in bfloat16; in float32 with dense rows, where tokens are known to be few."""
    del expert_weights, rest, named
    if x.dtype is torch.bfloat16:
        return True
    pairs, experts = expert_ids.numel(), gate_up.shape[0]
    few = isinstance(pairs, int) and isinstance(experts, int) and pairs <= _MANY * experts
    return few and all(t.ndim == 3 and isinstance(t.stride(2), int) and t.stride(2) == 1 for t in (gate_up, down))


def _agree(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, gate_up_bias: Tensor | None, down_bias: Tensor | None) -> bool:
    """Shapes as the op has them, but for the number of tokens, which may be a symbol; whole numbers for ids; one dtype for all that experts have."""
    if (x.ndim, ids.ndim, weights.ndim, gate_up.ndim, down.ndim) != (2, 2, 2, 3, 3) or ids.dtype not in (torch.int64, torch.int32):
        return False
    biases = [(b, m) for b, m in ((gate_up_bias, gate_up), (down_bias, down)) if b is not None]
    if any(t.dtype is not gate_up.dtype for t in (down, *(b for b, _ in biases))):
        return False
    fixed = (x.shape[1], ids.shape[1], weights.shape[1], *gate_up.shape, *down.shape, *(n for b, _ in biases for n in b.shape))
    if not all(isinstance(n, int) for n in fixed):
        return False
    experts, rows, width = gate_up.shape
    agree = width == x.shape[1] == down.shape[1] and down.shape[0] == experts and ids.shape[1] == weights.shape[1]
    agree = agree and rows in (down.shape[2], 2 * down.shape[2]) and min(experts, rows, width, ids.shape[1]) > 0
    return agree and all(tuple(b.shape) == tuple(m.shape[:2]) for b, m in biases)


def _lie_densely(x: Tensor, gate_up: Tensor, down: Tensor, *biases: Tensor | None) -> bool:
    """Tokens and biases in dense rows, matrices in dense rows or dense columns; strides of matrices are known."""
    rows = [x, *(b for b in biases if b is not None)]
    known = all(isinstance(n, int) for t in (gate_up, down) for n in t.stride()) and all(isinstance(t.stride(1), int) for t in rows)
    return known and all(t.stride(1) == 1 for t in rows) and all(1 in t.stride()[1:] for t in (gate_up, down))
