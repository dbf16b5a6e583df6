"""LayerNorm with its rounding points as attributes: PyTorch's own operator, or the same spelled out in elementary ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor.placement_types import Replicate, Shard

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.op import Cost, op

_BATCH = ((Shard(0), Replicate(), Replicate()), (Shard(0),))
_TOKENS = ((Shard(1), Replicate(), Replicate()), (Shard(1),))


def _cost(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    offset: float = 0.0,
    compute_dtype: torch.dtype | None = None,
    round_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    spelled: int = 0,
    divide: int = 0,
) -> Cost:
    del eps, offset, divide
    written = round_dtype or compute_dtype or x.dtype
    if spelled:
        written = written if weight is None else torch.promote_types(written, weight_dtype or weight.dtype)
        written = written if bias is None else torch.promote_types(written, bias.dtype)
    affine = [p for p in (weight, bias) if p is not None]
    read = x.numel() * x.element_size() + sum(p.numel() * p.element_size() for p in affine)
    return Cost(flops=(5 + len(affine)) * x.numel(), bytes=read + x.numel() * (out_dtype or written).itemsize)


@op(
    cost=_cost,
    inputs=Inputs(
        x="... D",
        weight="D?",
        bias="D?",
        eps=Scalar(1e-5),
        offset=Scalar(0.0),
        compute_dtype=Dtype(optional=True),
        round_dtype=Dtype(optional=True),
        weight_dtype=Dtype(optional=True),
        out_dtype=Dtype(optional=True),
        spelled=Switch(),
        divide=Switch(),
    ),
    shardings={"batch": _BATCH, "tokens": _TOKENS},
)
def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    offset: float = 0.0,
    compute_dtype: torch.dtype | None = None,
    round_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    spelled: int = 0,
    divide: int = 0,
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * (weight + offset) + bias`` over the last dim (Ba et al., 2016, arXiv:1607.06450).

    Each dtype names a point where the traced code rounds; None means that it does not cast there.

    Args:
        x: (..., D).
        weight, bias: (D,) or None; where spelled out, any shape that broadcasts to x's.
        eps: added to the variance.
        offset: added to the weight, in `weight_dtype` (1 in models that store the weight's distance from one).
        compute_dtype: the values are cast to it before everything else.
        round_dtype: the normalised values are cast to it: where spelled out before weight and bias, else after them.
        weight_dtype: the weight is cast to it before the offset is added.
        out_dtype: the result is cast to it.
        spelled: 0 for `torch.nn.functional.layer_norm`, 1 for mean, difference, square, mean, root, product: they round differently.
        divide: where spelled out, 1 if the values are divided by the root, 0 if its inverse multiplies them.
    """
    h = x if compute_dtype is None else x.to(compute_dtype)
    w = weight if weight is None or weight_dtype is None else weight.to(weight_dtype)
    w = w if w is None or not offset else w + offset
    spell = _divided if divide else _multiplied
    y = spell(h, eps) if spelled else _native(h, w, bias, eps)
    y = y if round_dtype is None else y.to(round_dtype)
    if spelled:
        y = y if w is None else y * w
        y = y if bias is None else y + bias
    return y if out_dtype is None else y.to(out_dtype)


def _multiplied(h: Tensor, eps: float) -> Tensor:
    """The normalised values, operator by operator."""
    centred = h - h.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)


def _divided(h: Tensor, eps: float) -> Tensor:
    centred = h - h.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + eps)


def _native(h: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """PyTorch's operator, which mixes dtypes only as 16-bit values with weight and bias in float32; other parameters are cast to what it takes."""
    given = {p.dtype for p in (weight, bias) if p is not None}
    held = torch.float32 if given - {h.dtype} and h.dtype in (torch.float16, torch.bfloat16) else h.dtype
    weight, bias = (None if p is None else p.to(held) for p in (weight, bias))
    return F.layer_norm(h, (h.shape[-1],), weight, bias, eps)


def _fits_triton(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    offset: float = 0.0,
    compute_dtype: torch.dtype | None = None,
    round_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    spelled: int = 0,
    divide: int = 0,
) -> bool:
    """An inverse root in float32 over rows of at most 32k; weight and bias are vectors of a row's width."""
    del eps, offset
    floats = (torch.float32, torch.float16, torch.bfloat16)
    width = x.shape[-1] if x.ndim else 0
    computed = compute_dtype or x.dtype
    # PyTorch's operator computes in float32 whatever the values' dtype, and rounds to it at the end; the kernel rounds there once.
    single = computed is torch.float32 or (not spelled and computed is x.dtype and round_dtype in (None, computed, torch.float32))
    fits = not divide and isinstance(width, int) and 0 < width <= 32768 and x.dtype in floats and single
    vectors = all(p is None or (p.dtype in floats and p.ndim == 1 and isinstance(p.shape[0], int) and p.shape[0] == width) for p in (weight, bias))
    return fits and vectors and all(d in (None, *floats) for d in (round_dtype, weight_dtype, out_dtype))


layer_norm.impl("triton", device="cuda", load=".triton", when=_fits_triton)
