"""Which calls the C++ kernel takes, and at which it is faster, from shapes, dtypes and scalars: no size is fixed by asking."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hfgraph.graph.values import same_size

MOST_QUERIES = 16
SHORT = 128
# At or below, a score is nothing but what masks it.
_LOW = -1e30


def fits_cpp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    segments: Tensor | None = None,
    start: Tensor | None = None,
    scale: float = 1.0,
    left: int = -1,
    right: int = -1,
    chunk: int = 0,
    offset: int | None = None,
    softcap: float = 0.0,
    slopes: list[float] | None = None,
    masked: float | None = None,
) -> bool:
    """A few queries in float32 or bfloat16 over dense rows; masks and biases that broadcast; no segments."""
    del scale, left, right, chunk, offset, softcap
    if segments is not None or not _fits_rows(q, k, v):
        return False
    pairs = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    if mask is not None and not (mask.dtype is torch.bool and _broadcasts(mask, pairs)):
        return False
    if bias is not None and not (bias.dtype is q.dtype and _broadcasts(bias, pairs)):
        return False
    if sinks is not None and not (sinks.dtype is q.dtype and sinks.ndim == 1 and sinks.shape[0] == q.shape[1]):
        return False
    if start is not None and not (start.dtype in (torch.int32, torch.int64) and start.ndim == 0 and start.device.type == "cpu"):
        return False
    return (not slopes or len(slopes) == q.shape[1]) and _counts_for_nothing(masked, q.dtype)


def cpp_wins(q: Tensor, k: Tensor, *rest: Any, **named: Any) -> bool:
    """Where benchmarks/attention.py shows a clear gain over PyTorch's operator with every key valid, the worst case: one query;
    in float32 several heads to a group and a cache that is known not to be short."""
    del rest, named
    if q.ndim != 4 or k.ndim != 4 or not same_size(q.shape[2], 1):
        return False
    keys, grouped = k.shape[2], not same_size(q.shape[1], k.shape[1])
    return q.dtype is torch.bfloat16 or (grouped and isinstance(keys, int) and keys >= SHORT)


def _fits_rows(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """(B, H, Q, D), (B, G, K, D) and (B, G, K, E), of which only B and K may be symbols; last dims dense."""
    if any(t.ndim != 4 or t.dtype is not q.dtype for t in (q, k, v)) or q.dtype not in (torch.float32, torch.bfloat16):
        return False
    fixed = (q.shape[2], *(n for t in (q, k, v) for n in (t.shape[1], t.shape[3], t.stride(3))))
    if not all(isinstance(n, int) for n in fixed):
        return False
    queries, heads, groups = q.shape[2], q.shape[1], k.shape[1]
    if not (0 < queries <= MOST_QUERIES and 0 < groups <= heads and heads % groups == 0 and all(t.stride(3) == 1 for t in (q, k, v))):
        return False
    return same_size(q.shape[0], k.shape[0]) and k.shape[1] == v.shape[1] and q.shape[3] == k.shape[3]


def _broadcasts(t: Tensor, to: tuple[Any, ...]) -> bool:
    """Not known to be other than 1 or the dim that it meets: between symbols the kernel decides, and checks."""
    if t.ndim > len(to):
        return False
    return all(n in (1, m) for n, m in zip(t.shape, to[len(to) - t.ndim :], strict=True) if isinstance(n, int) and isinstance(m, int))


def _counts_for_nothing(masked: float | None, dtype: torch.dtype) -> bool:
    """A masked key has no score, or one so low that it counts only where all have it; neither is infinite in q's dtype."""
    return masked is None or (masked <= _LOW and torch.tensor(masked).to(dtype).isfinite().item() is True)
