"""Which calls the C++ kernel takes, and at which it is faster, from shapes, dtypes and scalars: no size is fixed by asking."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hfgraph.kernels.glu import ACTIVATIONS

_FLOATS = (torch.float32, torch.bfloat16)


def fits_cpp(
    x: Tensor, expert_ids: Tensor, expert_weights: Tensor, gate_up: Tensor, down: Tensor, gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None, activation: str = "silu", alpha: float = 1.0, gate_max: float | None = None, act_max: float | None = None,
    up_min: float | None = None, up_max: float | None = None, up_offset: float = 0.0, interleaved: int = 0, weights_first: int = 0,
) -> bool:  # fmt: skip
    """float32 or bfloat16 throughout, but for weights of the router; matrices with dense rows or dense columns; only the number of tokens may be a symbol."""
    del alpha, gate_max, act_max, up_min, up_max, up_offset, interleaved
    if x.dtype not in _FLOATS or any(t is not None and t.dtype is not x.dtype for t in (gate_up, down, gate_up_bias, down_bias)):
        return False
    if (x.ndim, expert_ids.ndim, expert_weights.ndim, gate_up.ndim, down.ndim) != (2, 2, 2, 3, 3) or activation not in ACTIVATIONS:
        return False
    routed = expert_ids.dtype in (torch.int64, torch.int32) and expert_weights.dtype in ((x.dtype,) if weights_first else (x.dtype, torch.float32))
    return routed and _sizes_fit(x, expert_ids, expert_weights, gate_up, down) and _biases_fit(gate_up, down, gate_up_bias, down_bias)


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


def _sizes_fit(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> bool:
    fixed = (x.shape[1], ids.shape[1], weights.shape[1], *gate_up.shape, *down.shape, *gate_up.stride(), *down.stride(), x.stride(1))
    if not all(isinstance(n, int) for n in fixed):
        return False
    experts, rows, width = gate_up.shape
    dense = x.stride(1) == 1 and all(1 in t.stride()[1:] for t in (gate_up, down))
    agree = width == x.shape[1] == down.shape[1] and down.shape[0] == experts and ids.shape[1] == weights.shape[1]
    return dense and agree and rows in (down.shape[2], 2 * down.shape[2]) and min(experts, rows, width, ids.shape[1]) > 0


def _biases_fit(gate_up: Tensor, down: Tensor, gate_up_bias: Tensor | None, down_bias: Tensor | None) -> bool:
    """Rows lie dense, one for each expert."""
    pairs = ((gate_up_bias, gate_up), (down_bias, down))
    return all(b is None or (tuple(b.shape) == tuple(m.shape[:2]) and b.stride(1) == 1) for b, m in pairs)
