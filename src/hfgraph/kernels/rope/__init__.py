"""Rotary position embedding of queries and keys, by the same tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor.placement_types import Replicate, Shard

from hfgraph.graph.inputs import Dtype, Inputs, Switch
from hfgraph.graph.op import Cost, op
from hfgraph.kernels.rotate import rotate

_BATCH = ((Shard(0),) * 4, (Shard(0),) * 2)
_HEADS = ((Shard(1), Shard(1), Replicate(), Replicate()), (Shard(1),) * 2)
_TOKENS = ((Shard(2),) * 4, (Shard(2),) * 2)


def _cost(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, half: int = 0, *attributes: Any, **named: Any) -> Cost:
    """Both rotations; the tables are read once."""
    compute_dtype, out_dtype = attributes[-2:] if len(attributes) == 8 else (named.get("compute_dtype"), named.get("out_dtype"))
    each = [rotate.cost(x, cos, sin, half, compute_dtype=compute_dtype, out_dtype=out_dtype) for x in (q, k)]
    tables = cos.numel() * cos.element_size() + sin.numel() * sin.element_size()
    return Cost(flops=each[0].flops + each[1].flops, bytes=each[0].bytes + each[1].bytes - tables)


@op(
    cost=_cost,
    inputs=Inputs(
        q="B H T 24",
        k="B G T 24",
        cos="B 1 T 8",
        sin="B 1 T 8",
        half=Switch(),
        q_tail=Switch(),
        k_tail=Switch(),
        interleaved=Switch(),
        interleaved_out=Switch(),
        reverse=Switch(),
        complex_product=Switch(),
        compute_dtype=Dtype(optional=True),
        out_dtype=Dtype(optional=True),
    ),
    shardings={"batch": _BATCH, "heads": _HEADS, "tokens": _TOKENS},
)
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
    """`rotate` of queries and of keys (Su et al., 2021, arXiv:2104.09864).

    Args:
        q, k: (..., D) each; they may have different heads and widths.
        q_tail, k_tail: 1 where the last R values are the rotary part, 0 where the first are.
        cos, sin, half, interleaved, interleaved_out, reverse, complex_product, compute_dtype, out_dtype: see `rotate`.

    Returns:
        The rotated queries and keys, contiguous.
    """
    same = (interleaved, interleaved_out, reverse, complex_product, compute_dtype, out_dtype)
    return rotate.reference(q, cos, sin, half, q_tail, *same), rotate.reference(k, cos, sin, half, k_tail, *same)
