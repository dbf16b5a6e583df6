"""Rotary position embedding of one tensor: pairs of its last dim turn by angles that depend on the position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor.placement_types import Replicate, Shard

from hfgraph.graph.inputs import Dtype, Inputs, Switch
from hfgraph.graph.op import Cost, op
from hfgraph.graph.values import same_shape, same_size

_BATCH = ((Shard(0), Shard(0), Shard(0)), (Shard(0),))
_HEADS = ((Shard(1), Replicate(), Replicate()), (Shard(1),))
_TOKENS = ((Shard(2), Shard(2), Shard(2)), (Shard(2),))


def _cost(*args: Any, **kwargs: Any) -> Cost:
    """Three operations for each rotated value; whatever is not rotated is moved all the same."""
    given = rotate.bind(args, kwargs)
    x, cos = given["x"], given["cos"]
    turned = x.numel() // x.shape[-1] * cos.shape[-1] * (2 if given["half"] else 1)
    rotated = given["out_dtype"] or torch.promote_types(given["compute_dtype"] or x.dtype, cos.dtype)
    whole = same_size(turned, x.numel())
    written = rotated if whole else torch.promote_types(rotated, x.dtype)  # with what passes through
    return Cost(flops=3 * turned, bytes=x.numel() * (x.element_size() + written.itemsize) + 2 * cos.numel() * cos.element_size())


@op(
    cost=_cost,
    counted_as="rope",
    inputs=Inputs(
        scales=(1.0,),
        x="B H T 24",
        cos="B 1 T 8",
        sin="B 1 T 8",
        half=Switch(),
        tail=Switch(),
        interleaved=Switch(),
        interleaved_out=Switch(),
        reverse=Switch(),
        complex_product=Switch(),
        compute_dtype=Dtype(optional=True),
        out_dtype=Dtype(optional=True),
    ),
    shardings={"batch": _BATCH, "heads": _HEADS, "tokens": _TOKENS},
)
def rotate(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    half: int = 0,
    tail: int = 0,
    interleaved: int = 0,
    interleaved_out: int = 0,
    reverse: int = 0,
    complex_product: int = 0,
    compute_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``(a * cos - b * sin, b * cos + a * sin)`` for each pair (a, b) of the rotary part of the last dim (Su et al., 2021, arXiv:2104.09864).

    The rotary part is as wide as the tables say; the rest passes through.

    Args:
        x: (..., D), heads and positions in any order.
        cos, sin: (..., R) or (..., R / 2), broadcasting to x's leading dims.
        half: 1 where the tables have one entry for each pair, 0 where they have one for each result.
        tail: 1 where the last R values are the rotary part, 0 where the first are.
        interleaved: 1 where neighbours are pairs, 0 where the first half meets the second.
        interleaved_out: the same for the result; some models take neighbours and leave halves.
        reverse: 1 where it turns the other way: ``(a * cos + b * sin, b * cos - a * sin)``.
        complex_product: 1 where the pairs are multiplied as complex numbers, which rounds otherwise.
        compute_dtype: the rotary part is cast to it first.
        out_dtype: the rotated values are cast to it.

    Returns:
        (..., D), in `out_dtype`, or in the dtype that PyTorch's promotion gives.
    """
    width = cos.shape[-1] * 2 if half else cos.shape[-1]
    whole = same_size(width, x.shape[-1])
    start = x.shape[-1] - width if tail and not whole else 0
    part = (x if whole else x[..., start : start + width]).to(compute_dtype or x.dtype)
    how = (half, interleaved, interleaved_out, reverse)
    turned = _as_complex(part, cos, sin, half, reverse) if complex_product else _turned(part, cos, sin, *how)
    turned = turned.to(out_dtype or turned.dtype)
    return turned if whole else torch.cat([x[..., :start], turned] if tail else [turned, x[..., width:]], -1)


def _pairs(x: Tensor, interleaved: int) -> tuple[Tensor, Tensor]:
    """First and second values of the pairs."""
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    middle = x.shape[-1] // 2
    return x[..., :middle], x[..., middle:]


def _joined(a: Tensor, b: Tensor, interleaved: int) -> Tensor:
    """Pairs from their first and second values."""
    return torch.stack((a, b), -1).flatten(-2) if interleaved else torch.cat((a, b), -1)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, half: int, interleaved: int, interleaved_out: int, reverse: int) -> Tensor:
    """Both ways of writing it give the same numbers; memory is laid out as models have it that write it so."""
    a, b = _pairs(x, interleaved)
    if not half and interleaved == interleaved_out:
        return x * cos + _joined(*((b, -a) if reverse else (-b, a)), interleaved) * sin
    (cos_a, cos_b), (sin_a, sin_b) = ((t, t) if half else _pairs(t, interleaved_out) for t in (cos, sin))
    if reverse:
        return _joined(a * cos_a + b * sin_a, b * cos_b - a * sin_b, interleaved_out)
    return _joined(a * cos_a - b * sin_a, b * cos_b + a * sin_b, interleaved_out)


def _as_complex(x: Tensor, cos: Tensor, sin: Tensor, half: int, reverse: int) -> Tensor:
    """Neighbours as complex numbers, times ``cos + i sin``; the tables have an entry for each pair."""
    sin = -sin if reverse else sin
    table = torch.stack([cos, sin] if half else [cos[..., 0::2], sin[..., 0::2]], -1)
    product = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.view_as_complex(table)
    return torch.view_as_real(product).flatten(-2)


def fits_triton(x: Tensor, cos: Tensor, sin: Tensor, half: int, complex_product: int, dtypes: tuple[torch.dtype | None, ...]) -> bool:
    """Tables of one shape that broadcast to x's leading dims, at most 1024 values that turn and 1024 that do not, no complex product."""
    floats = (torch.float32, torch.float16, torch.bfloat16)
    sizes = (x.shape[-1] if x.ndim else 0, cos.shape[-1] if cos.ndim else 0)
    if complex_product or not all(isinstance(s, int) and s > 0 for s in sizes) or cos.ndim > x.ndim or not same_shape(cos, sin) or cos.dtype != sin.dtype:
        return False
    turned = sizes[1] * (2 if half else 1)
    narrow = turned % 2 == 0 and 0 < turned <= 1024 and 0 <= sizes[0] - turned <= 1024
    broadcast = all(same_size(a, 1) or same_size(a, b) for a, b in zip(cos.shape[-2::-1], x.shape[-2::-1], strict=False))
    return narrow and broadcast and all(d in floats for d in (x.dtype, cos.dtype)) and all(d in (None, *floats) for d in dtypes)


def _fits(x: Tensor, cos: Tensor, sin: Tensor, *attributes: Any, **named: Any) -> bool:
    """Tables of one shape that broadcast to x's leading dims, at most 1024 values that turn and 1024 that do not, no complex product."""
    given = rotate.bind((x, cos, sin, *attributes), named)
    return fits_triton(x, cos, sin, given["half"], given["complex_product"], (given["compute_dtype"], given["out_dtype"]))


rotate.impl("triton", device="cuda", load=".triton", when=_fits)
