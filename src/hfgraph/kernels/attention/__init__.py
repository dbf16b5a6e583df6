"""Attention with its structure as attributes: which keys a query sees is said, not tabulated."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor.placement_types import Replicate, Shard

from hfgraph.graph.inputs import Inputs, Numbers, Scalar
from hfgraph.graph.op import Cost, op
from hfgraph.graph.values import same_size
from hfgraph.kernels.attention.fits import cpp_wins, fits_cpp
from hfgraph.kernels.attention.masking import allowed_keys, is_causal, is_full


def _cost(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, *rest: Any, **named: Any) -> Cost:
    """Two products over all pairs of queries and keys, without credit for a structure; every tensor moved once."""
    del rest, named
    read = sum(t.numel() * t.element_size() for t in (q, k, v, mask, bias) if t is not None)
    out = q.numel() // max(q.shape[-1], 1) * v.shape[-1]
    return Cost(flops=2 * (q.numel() + out) * k.shape[-2], bytes=read + out * q.element_size())


_BATCH = ((*[Shard(0)] * 4, Replicate(), Replicate(), Shard(0), Replicate()), (Shard(0),))
_HEADS = ((*[Shard(1)] * 3, Replicate(), Shard(1), Shard(0), Replicate(), Replicate()), (Shard(1),))


@op(
    cost=_cost,
    inputs=Inputs(
        q="B H T D",
        k="B H S D",
        v="B H S D",
        mask="bool B 1 T S?",
        bias="1 H T S?",
        sinks="H?",
        segments="int B S?",
        start="int?",
        scale=Scalar(0.125),
        left=Scalar(7),
        right=Scalar(0),
        chunk=Scalar(0),
        offset=Scalar(0, optional=True),
        softcap=Scalar(0.0),
        slopes=Numbers(),
        masked=Scalar(None, optional=True),
        scales=(1.0, 1e-3, 10.0),
    ),
    shardings={"batch": _BATCH, "heads": _HEADS},
)
def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, sinks: Tensor | None = None, segments: Tensor | None = None,
    start: Tensor | None = None, scale: float = 1.0, left: int = -1, right: int = -1, chunk: int = 0, offset: int | None = None, softcap: float = 0.0,
    slopes: list[float] | None = None, masked: float | None = None,
) -> Tensor:  # fmt: skip
    """``softmax(softcap(scale * (q @ k^T)) + bias) @ v`` over the keys that each query may attend to (Vaswani et al., 2017, arXiv:1706.03762).

    Query i stands at position p = i + K - Q, or i + `offset`, or i + `start`; key j at position j. It may attend to j if
    ``p - left <= j <= p + right`` (negative: unbounded), if both lie in the same chunk and the same segment, and if `mask` allows it.

    Args:
        q: (..., H, Q, D).
        k: (..., G, K, D), with G = H, or a divisor of H: head h reads group h * G // H.
        v: (..., G, K, E).
        mask: what no attribute says, boolean, True where a query may attend; broadcastable to (..., H, Q, K).
        bias: added to the scores; broadcastable to (..., H, Q, K).
        sinks: (H,), scores of one more key per head that has no value.
        segments: (B, K), integers; a query attends within its own segment only.
        start: 0-dim, the position of the first query where only the run knows it.
        scale: of the scores.
        left, right: how many positions before and after its own a query may attend to; negative for all.
        chunk: size of the chunks; 0 for none.
        offset: position of the first query; None where the queries are the last positions.
        softcap: scores s become ``softcap * tanh(s / softcap)``; 0 for none.
        slopes: (H,) of ALiBi: ``slope * (j - p)`` is added (Press et al., 2021, arXiv:2108.12409).
        masked: the score of a key that may not be attended to; None where it does not count at all. They differ for
            queries without any key: a finite score spreads them over all keys, None gives zeros, -inf NaN.

    Returns:
        (..., H, Q, E), in q's dtype.
    """
    if is_spelled(sinks, softcap, masked):
        allowed = allowed_keys(q, k, mask, segments, start, left, right, chunk, offset)
        return _spelled(q, k, v, allowed, with_slopes(bias, slopes, q, k), sinks, scale, softcap, masked)
    if needs_table(q, k, v, mask, bias, sinks, segments, start, scale, left, right, chunk, offset, softcap, slopes, masked):
        added = scores_to_add(q, k, mask, bias, segments, start, left, right, chunk, offset, slopes, masked)
        return _fused(q, k, v, added, False, scale)
    return _fused(q, k, v, None if bias is None else bias.to(q.dtype), is_causal(q, k, left, right, chunk, offset), scale)


# From this score on fused operators take a masked key for one that counts; lower ones swallow every score beside them all the same.
SPELLED = -1e30


def is_spelled(sinks: Tensor | None, softcap: float, masked: float | None) -> bool:
    """No fused attention computes it: the reference writes the softmax out. That of float16 is not low enough to swallow a
    score that is added in float32."""
    return sinks is not None or bool(softcap) or (masked is not None and not float("-inf") < masked < SPELLED)


def needs_table(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, sinks: Tensor | None = None, segments: Tensor | None = None,
    start: Tensor | None = None, scale: float = 1.0, left: int = -1, right: int = -1, chunk: int = 0, offset: int | None = None, softcap: float = 0.0,
    slopes: list[float] | None = None, masked: float | None = None,
) -> bool:  # fmt: skip
    """The reference would have to tabulate what each pair adds to its score."""
    del v, scale
    if is_spelled(sinks, softcap, masked):
        return False
    if any(t is not None for t in (mask, segments, start, slopes)):
        return True
    full = is_full(q, left, right, chunk, offset)
    return not full and (bias is not None or not is_causal(q, k, left, right, chunk, offset))


def scores_to_add(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    segments: Tensor | None,
    start: Tensor | None,
    left: int,
    right: int,
    chunk: int,
    offset: int | None,
    slopes: list[float] | None,
    masked: float | None,
) -> Tensor:
    """Mask and bias of `attention` as one tensor in q's dtype, broadcastable to (..., H, Q, K)."""
    allowed = allowed_keys(q, k, mask, segments, start, left, right, chunk, offset)
    bias = with_slopes(bias, slopes, q, k)
    total = torch.zeros((), dtype=q.dtype, device=q.device) if bias is None else bias.to(q.dtype)
    return total if allowed is None else torch.where(allowed, total, float("-inf") if masked is None else masked)


def with_slopes(bias: Tensor | None, slopes: list[float] | None, q: Tensor, k: Tensor) -> Tensor | None:
    """The bias, and that of ALiBi. What is the same for all keys of a query is left out: a softmax does not see it."""
    if not slopes:
        return bias
    distance = torch.arange(k.shape[-2], device=q.device) - (k.shape[-2] - 1)
    # Not `torch.tensor`: a constant would have to be carried along with the graph.
    rates = torch.cat([torch.full((1,), s, device=q.device) for s in slopes])
    alibi = (rates[:, None, None] * distance).to(q.dtype)
    return alibi if bias is None else bias + alibi


def _fused(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, causal: bool, scale: float) -> Tensor:
    """PyTorch's own operator, without repeating the heads of a group."""
    grouped = q.ndim > 3 and not same_size(q.shape[-3], k.shape[-3])
    if grouped and same_size(q.shape[-2], 1) and _is_one_row(added):
        return _folded(q, k, v, added, scale)
    added = None if added is None else torch.atleast_2d(added)  # type: ignore[assignment]  (the operator takes no vector)
    return F.scaled_dot_product_attention(q, k, v, added, is_causal=causal, scale=scale, enable_gqa=grouped)


def _is_one_row(added: Tensor | None) -> bool:
    """All heads and queries have the same scores added."""
    return added is None or all(same_size(s, 1) for s in added.shape[-3:-1])


def _folded(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, scale: float) -> Tensor:
    """One query: the heads of a group become queries of one head, so that each key is read once."""
    groups = k.shape[-3]
    many = q.reshape(*q.shape[:-3], groups, q.shape[-3] // groups, q.shape[-1])
    out = F.scaled_dot_product_attention(many, k, v, added, scale=scale)
    return out.reshape(*q.shape[:-1], v.shape[-1])


def _spelled(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, bias: Tensor | None, sinks: Tensor | None, scale: float, softcap: float, masked: float | None
) -> Tensor:
    """As models write it: scores rounded to the inputs' dtype, their softmax in float32."""
    if q.ndim > 3 and not same_size(q.shape[-3], k.shape[-3]):
        k, v = (t.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3) for t in (k, v))
    scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        scores = torch.where(allowed, scores, float("-inf") if masked is None else masked)
    if sinks is not None:
        last = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, last], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    if allowed is not None and masked is None and sinks is None:
        weights = torch.where(allowed.any(-1, keepdim=True), weights, 0.0)
    return torch.matmul(weights if sinks is None else weights[..., :-1], v)


_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def _heads_fit(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Heads of at most 256, known like their number, in one float dtype up to 32 bits."""
    if q.ndim < 3 or not q.ndim == k.ndim == v.ndim or not q.dtype == k.dtype == v.dtype or q.dtype not in _FLOATS:
        return False
    sizes = (q.shape[-1], v.shape[-1], q.shape[-3], k.shape[-3])
    if not all(isinstance(s, int) and s > 0 for s in sizes) or not same_size(q.shape[-1], k.shape[-1]) or not same_size(k.shape[-3], v.shape[-3]):
        return False
    width, v_width, heads, groups = sizes
    return max(width, v_width) <= 256 and (heads % groups == 0 if q.ndim > 3 else heads == groups)


def _fits_triton(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, sinks: Tensor | None = None, segments: Tensor | None = None,
    start: Tensor | None = None, scale: float = 1.0, left: int = -1, right: int = -1, chunk: int = 0, offset: int | None = None, softcap: float = 0.0,
    slopes: list[float] | None = None, masked: float | None = None,
) -> bool:  # fmt: skip
    """Tensors beside q, k and v, in the dtypes that say what they are, of no more dims."""
    del scale, left, right, chunk, offset, softcap, masked
    pairs = all(t is None or t.ndim <= q.ndim for t in (mask, bias)) and (mask is None or mask.dtype is torch.bool)
    marked = (segments is None or (q.ndim == 4 and not segments.is_floating_point())) and (start is None or not start.is_floating_point())
    weighed = all(t is None or t.dtype in _FLOATS for t in (bias, sinks)) and len(slopes or ()) in (0, q.shape[-3] if q.ndim > 2 else 0)
    return _heads_fit(q, k, v) and pairs and marked and weighed


attention.impl("triton", device="cuda", load=".triton", when=_fits_triton)
attention.impl("cpp", device="cpu", load=".cpp", when=fits_cpp, auto=cpp_wins, native=True)
