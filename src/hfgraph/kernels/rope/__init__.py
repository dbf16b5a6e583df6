"""Rotary position embedding of queries and keys, by the same tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor.placement_types import Replicate, Shard

from hfgraph.graph.inputs import Dtype, Inputs, Switch
from hfgraph.graph.op import Cost, op
from hfgraph.kernels.rotate import fits_triton, rotate

_BATCH = ((Shard(0),) * 4, (Shard(0),) * 2)
_HEADS = ((Shard(1), Shard(1), Replicate(), Replicate()), (Shard(1),) * 2)
_TOKENS = ((Shard(2),) * 4, (Shard(2),) * 2)


def _cost(*args: Any, **kwargs: Any) -> Cost:
    """Both rotations; the tables are read once."""
    given = rope.bind(args, kwargs)
    cos = given["cos"]
    q, k = (rotate.cost(given[n], cos, given["sin"], given["half"], compute_dtype=given["compute_dtype"], out_dtype=given["out_dtype"]) for n in "qk")
    return Cost(flops=q.flops + k.flops, bytes=q.bytes + k.bytes - 2 * cos.numel() * cos.element_size())


@op(
    cost=_cost,
    inputs=Inputs(
        scales=(1.0,),
        q="B 2H T 24",
        k="B H T 24",
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
    """``(rotate(q, cos, sin), rotate(k, cos, sin))`` (Su et al., 2021, arXiv:2104.09864).

    Args:
        q, k: (..., D) each; they may have different heads and widths.
        q_tail, k_tail: 1 where the last R values are the rotary part, 0 where the first are.
        cos, sin, half, interleaved, interleaved_out, reverse, complex_product, compute_dtype, out_dtype: see `rotate`.

    Returns:
        The rotated queries and keys.
    """
    same = (interleaved, interleaved_out, reverse, complex_product, compute_dtype, out_dtype)
    return rotate.reference(q, cos, sin, half, q_tail, *same), rotate.reference(k, cos, sin, half, k_tail, *same)


def _fits(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *attributes: Any, **named: Any) -> bool:
    """Where the kernel of `rotate` takes the queries and the keys, and both have one dtype."""
    given = rope.bind((q, k, cos, sin, *attributes), named)
    rest = (given["half"], given["complex_product"], (given["compute_dtype"], given["out_dtype"]))
    return q.dtype == k.dtype and all(fits_triton(x, cos, sin, *rest) for x in (q, k))


rope.impl("triton", device="cuda", load=".triton", when=_fits)
