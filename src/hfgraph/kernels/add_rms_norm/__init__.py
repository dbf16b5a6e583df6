"""Residual add and RMSNorm of the sum, both returned: what stands between two blocks of a pre-norm transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor.placement_types import Replicate, Shard

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.op import Cost, op
from hfgraph.graph.values import same_shape
from hfgraph.kernels.rms_norm import _fits_triton, rms_norm

_BATCH = ((Shard(0), Shard(0), Replicate()), (Shard(0), Shard(0)))
_TOKENS = ((Shard(1), Shard(1), Replicate()), (Shard(1), Shard(1)))


def _cost(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, multiplier: float = 1.0, *attributes: Any, **named: Any) -> Cost:
    """The norm of a sum that is never read back, the addition, and the sum written out."""
    norm = rms_norm.cost(x, weight, eps, *attributes, **named)
    sums = x.numel() if multiplier == 1 else 2 * x.numel()
    return Cost(flops=norm.flops + sums, bytes=norm.bytes + residual.numel() * residual.element_size() + x.numel() * x.element_size())


@op(
    cost=_cost,
    inputs=Inputs(
        x="... D",
        residual="... D",
        weight="D?",
        eps=Scalar(1e-6),
        multiplier=Scalar(1.0),
        offset=Scalar(0.0),
        compute_dtype=Dtype(optional=True),
        scale_dtype=Dtype(optional=True),
        round_dtype=Dtype(optional=True),
        weight_dtype=Dtype(optional=True),
        out_dtype=Dtype(optional=True),
        divide=Switch(),
    ),
    shardings={"batch": _BATCH, "tokens": _TOKENS},
)
def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    multiplier: float = 1.0,
    offset: float = 0.0,
    compute_dtype: torch.dtype | None = None,
    scale_dtype: torch.dtype | None = None,
    round_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    divide: int = 0,
) -> tuple[Tensor, Tensor]:
    """``rms_norm(x * multiplier + residual, ...)`` and the sum itself, rounded to its own dtype as a separate addition would.

    Args:
        x, residual: (..., D), of one shape.
        multiplier: of x; the product is rounded to x's dtype before it is added.
        weight, eps, offset, compute_dtype, scale_dtype, round_dtype, weight_dtype, out_dtype, divide: see `rms_norm`.

    Returns:
        The normalised values (..., D) and the sum (..., D).
    """
    total = (x if multiplier == 1 else x * multiplier) + residual
    normed = rms_norm.reference(total, weight, eps, offset, compute_dtype, scale_dtype, round_dtype, weight_dtype, out_dtype, divide)
    return normed, total


def _fits(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, multiplier: float = 1.0, *attributes: Any, **named: Any) -> bool:
    del multiplier
    return x.dtype == residual.dtype and same_shape(x, residual) and _fits_triton(x, weight, eps, *attributes, **named)


add_rms_norm.impl("triton", device="cuda", load=".triton", when=_fits)
