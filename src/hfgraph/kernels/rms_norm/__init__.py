"""RMSNorm with its rounding points as attributes: every spelling found in models is one setting of this op."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor.placement_types import Replicate, Shard

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.op import Cost, op

_BATCH = ((Shard(0), Replicate()), (Shard(0),))
_TOKENS = ((Shard(1), Replicate()), (Shard(1),))


def _cost(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    offset: float = 0.0,
    compute_dtype: torch.dtype | None = None,
    scale_dtype: torch.dtype | None = None,
    round_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    divide: int = 0,
) -> Cost:
    del eps, offset, divide
    normed = round_dtype or scale_dtype or compute_dtype or x.dtype
    written = out_dtype or (normed if weight is None else torch.promote_types(normed, weight_dtype or weight.dtype))
    read = x.numel() * x.element_size() + (0 if weight is None else weight.numel() * weight.element_size())
    return Cost(flops=(3 if weight is None else 4) * x.numel(), bytes=read + x.numel() * written.itemsize)


@op(
    cost=_cost,
    inputs=Inputs(
        x="... D",
        weight="D?",
        eps=Scalar(1e-6),
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
def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    offset: float = 0.0,
    compute_dtype: torch.dtype | None = None,
    scale_dtype: torch.dtype | None = None,
    round_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    divide: int = 0,
) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * (weight + offset)`` over the last dim (Zhang and Sennrich, 2019, arXiv:1910.07467).

    Each dtype names a point where the traced code rounds; None means that it does not cast there.

    Args:
        x: (..., D).
        weight: (D,), or any shape that broadcasts to x's; None for a norm without a weight.
        eps: added to the mean of squares.
        offset: added to the weight, in `weight_dtype` (1 in models that store the weight's distance from one).
        compute_dtype: of the squares, their mean and its inverse root; usually float32.
        scale_dtype: of the values and their (inverse) root when they meet.
        round_dtype: the normalised values are cast to it before the weight is applied.
        weight_dtype: the weight is cast to it before the offset is added.
        out_dtype: the result is cast to it.
        divide: 1 where the values are divided by the root, 0 where its inverse multiplies them: they round differently.

    Returns:
        (..., D), in `out_dtype`, or in the dtype that PyTorch's promotion gives.
    """
    h = x if compute_dtype is None else x.to(compute_dtype)
    root = (torch.sqrt if divide else torch.rsqrt)(h.pow(2).mean(-1, keepdim=True) + eps)
    h, root = (h, root) if scale_dtype is None else (h.to(scale_dtype), root.to(scale_dtype))
    y = h / root if divide else h * root
    y = y if round_dtype is None else y.to(round_dtype)
    if weight is not None:
        w = weight if weight_dtype is None else weight.to(weight_dtype)
        y = y * (w + offset if offset else w)
    return y if out_dtype is None else y.to(out_dtype)


def _fits_triton(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    offset: float = 0.0,
    compute_dtype: torch.dtype | None = None,
    scale_dtype: torch.dtype | None = None,
    round_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    divide: int = 0,
) -> bool:
    """An inverse root in float32 over rows of at most 32k, a weight that is one vector of a row's width or of one element."""
    del eps, offset
    floats = (torch.float32, torch.float16, torch.bfloat16)
    width = x.shape[-1] if x.ndim else 0
    fits = not divide and isinstance(width, int) and 0 < width <= 32768 and x.dtype in floats and (compute_dtype or x.dtype) is torch.float32
    # A wider weight would widen the result.
    vector = weight is None or (weight.dtype in floats and weight.ndim == 1 and isinstance(weight.shape[0], int) and weight.shape[0] in (1, width))
    return fits and vector and all(d in (None, *floats) for d in (scale_dtype, round_dtype, weight_dtype, out_dtype))


rms_norm.impl("triton", device="cuda", load=".triton", when=_fits_triton)
