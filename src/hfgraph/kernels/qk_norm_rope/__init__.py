"""RMSNorm of each head's queries and keys, and their rotary position embedding: what stands between projection and attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor.placement_types import Replicate, Shard

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.op import Cost, op
from hfgraph.graph.values import same_size
from hfgraph.kernels.rms_norm import _fits_triton, rms_norm
from hfgraph.kernels.rope import rope
from hfgraph.kernels.rotate import fits_triton

_WEIGHTS = (Replicate(), Replicate())
_BATCH = ((Shard(0), Shard(0), *_WEIGHTS, Shard(0), Shard(0)), (Shard(0),) * 2)
_HEADS = ((Shard(1), Shard(1), *_WEIGHTS, Replicate(), Replicate()), (Shard(1),) * 2)
_TOKENS = ((Shard(2), Shard(2), *_WEIGHTS, Shard(2), Shard(2)), (Shard(2),) * 2)


def _cost(*args: Any, **kwargs: Any) -> Cost:
    """The norms and the rotations; what lies between them is never written."""
    given = qk_norm_rope.bind(args, kwargs)
    dtypes = {n: given[n] for n in ("compute_dtype", "round_dtype", "weight_dtype", "out_dtype")}
    q, k = (rms_norm.cost(given[n], given[f"{n}_weight"], given["eps"], given["offset"], **dtypes) for n in "qk")
    normed = normed_dtype(given["q"].dtype, given["q_weight"].dtype, **dtypes)
    turns = rope.cost(given["q"], given["k"], given["cos"], given["sin"], given["half"], compute_dtype=normed)
    between = (given["q"].numel() + given["k"].numel()) * (normed.itemsize + given["q"].element_size())
    return Cost(flops=q.flops + k.flops + turns.flops, bytes=q.bytes + k.bytes + turns.bytes - between)


def normed_dtype(
    x: torch.dtype,
    weight: torch.dtype,
    compute_dtype: torch.dtype | None,
    round_dtype: torch.dtype | None,
    weight_dtype: torch.dtype | None,
    out_dtype: torch.dtype | None,
) -> torch.dtype:
    """The dtype between norm and rotation."""
    return out_dtype or torch.promote_types(round_dtype or compute_dtype or x, weight_dtype or weight)


@op(
    cost=_cost,
    inputs=Inputs(
        scales=(1.0, 1e-3),
        q="B 2H T 24",
        k="B H T 24",
        q_weight="24",
        k_weight="24",
        cos="B 1 T 8",
        sin="B 1 T 8",
        eps=Scalar(1e-6),
        offset=Scalar(0.0),
        compute_dtype=Dtype(optional=True),
        round_dtype=Dtype(optional=True),
        weight_dtype=Dtype(optional=True),
        out_dtype=Dtype(optional=True),
        divide=Switch(),
        half=Switch(),
        q_tail=Switch(),
        k_tail=Switch(),
        interleaved=Switch(),
        interleaved_out=Switch(),
        reverse=Switch(),
        swap=Switch(),
    ),
    shardings={"batch": _BATCH, "heads": _HEADS, "tokens": _TOKENS},
)
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
    """``rope(rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps), cos, sin)``, both as separate ops would round.

    Args:
        q, k: (..., D) each.
        q_weight, k_weight: the norms' weights, (D,) each.
        eps, offset, compute_dtype, round_dtype, weight_dtype, out_dtype, divide: see `rms_norm`.
        cos, sin, half, q_tail, k_tail, interleaved, interleaved_out, reverse: see `rope`.
        swap: 1 where heads and positions change places after the norm: (..., T, H, D) becomes (..., H, T, D).

    Returns:
        The rotated queries and keys.
    """
    norm = (eps, offset, compute_dtype, None, round_dtype, weight_dtype, out_dtype, divide)
    q, k = rms_norm.reference(q, q_weight, *norm), rms_norm.reference(k, k_weight, *norm)
    q, k = (q.transpose(-3, -2), k.transpose(-3, -2)) if swap else (q, k)
    return rope.reference(q, k, cos, sin, half, q_tail, k_tail, interleaved, interleaved_out, reverse)


def _fits(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float, *attributes: Any, **named: Any) -> bool:
    """Where the kernels of `rms_norm` and `rotate` take the queries and the keys, and both have one dtype and one kind of weight."""
    given = qk_norm_rope.bind((q, k, q_weight, k_weight, cos, sin, eps, *attributes), named)
    dtypes = {n: given[n] for n in ("compute_dtype", "round_dtype", "weight_dtype", "out_dtype")}
    alike = q.dtype == k.dtype and q_weight.dtype == k_weight.dtype
    norms = all(
        _fits_triton(x, w, eps, given["offset"], **dtypes, divide=given["divide"]) and same_size(w.shape[0], x.shape[-1])
        for x, w in ((q, q_weight), (k, k_weight))
    )
    swapped = (q.transpose(-3, -2), k.transpose(-3, -2)) if given["swap"] else (q, k)
    return alike and norms and all(fits_triton(x, cos, sin, given["half"], 0, ()) for x in swapped)


qk_norm_rope.impl("triton", device="cuda", load=".triton", when=_fits)
