"""Ways in which rotations are written: the examples on which their recognisers are tested."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hfgraph.graph.recogniser import Example
from hfgraph.kernels.rotate import rotate

_ROTARY, _WIDTH = 8, 20
_FIXED = (_ROTARY // 2, _ROTARY, _WIDTH)


def _halves(x: Tensor) -> Tensor:
    middle = x.shape[-1] // 2
    return torch.cat((-x[..., middle:], x[..., :middle]), -1)


def _neighbours(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def whole(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The first half meets the second; every value has its own table entry."""
    return x * cos + _halves(x) * sin


def neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Neighbours meet, in float32."""
    turned = x.float() * cos + _neighbours(x).float() * sin
    return turned.to(x.dtype)


def regrouped(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Neighbours meet and come out as halves; the tables are cut to one entry for a pair."""
    cos, sin = cos[..., : cos.shape[-1] // 2], sin[..., : sin.shape[-1] // 2]
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def prefix(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Only the first values turn, as many as the table is wide."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    return torch.cat([turned * cos + _halves(turned) * sin, rest], -1)


def suffix(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Only the last values turn; they are split off."""
    rest, turned = x.split([x.shape[-1] - cos.shape[-1], cos.shape[-1]], -1)
    return torch.cat([rest, turned * cos + _neighbours(turned) * sin], -1)


def chunked(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Two sums, one for each half."""
    a, b = torch.chunk(x, 2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def unbound(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs as a dim of their own."""
    a, b = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return x * cos + torch.stack((-b, a), -1).flatten(-2) * sin


def reversed_turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The other way round."""
    middle = x.shape[-1] // 2
    return x * cos + torch.cat((x[..., middle:], -x[..., :middle]), -1) * sin


def complex_numbers(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Neighbours as complex numbers, in float32."""
    turned = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2)) * torch.complex(cos, sin)
    return torch.view_as_real(turned).flatten(3).type_as(x)


def looked_up(x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    """A ready table of sines and cosines, indexed by position."""
    sin, cos = (t[:, None].repeat_interleave(2, -1) for t in table[positions].chunk(2, -1))
    return x * cos + _neighbours(x) * sin


def _made(width: int, table: int, *, single: bool = False, transposed: bool = False) -> Callable[[torch.dtype, int], tuple[Tensor, ...]]:
    """Arguments: values (batch, heads, positions, width), and independent tables (1, 1, positions, table)."""

    def make(dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2, 5, 3, width, generator=generator).transpose(1, 2) if transposed else torch.randn(2, 3, 5, width, generator=generator)
        tables = (torch.randn(1, 1, 5, table, generator=generator) for _ in range(2))
        return (x.to(dtype), *(t if single else t.to(dtype) for t in tables))

    return make


def _looked_up(dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
    x, table, _ = _made(_ROTARY, _ROTARY)(dtype, seed)
    return x, table[0, 0].repeat(3, 1), torch.tensor([[3, 4, 5, 6, 7], [0, 1, 2, 3, 4]])


# What a complex product does anyway, and that it does little else.
_OF_COMPLEX = ("tail", "interleaved", "interleaved_out", "complex_product")
ROTATIONS = (
    Example("halves", whole, _made(_ROTARY, _ROTARY, transposed=True), equal=("tail",), fixed=_FIXED),
    Example("neighbours", neighbours, _made(_ROTARY, _ROTARY), equal=("tail",), fixed=_FIXED),
    Example("regrouped", regrouped, _made(_ROTARY, _ROTARY, transposed=True), equal=("tail",), fixed=_FIXED),
    Example("prefix", prefix, _made(_WIDTH, _ROTARY), fixed=_FIXED),
    Example("suffix", suffix, _made(_WIDTH, _ROTARY, transposed=True), fixed=_FIXED),
    Example("chunked", chunked, _made(_ROTARY, _ROTARY // 2, transposed=True), equal=("tail",), fixed=_FIXED),
    Example("unbound", unbound, _made(_ROTARY, _ROTARY), equal=("tail",), fixed=_FIXED),
    Example("reversed", reversed_turn, _made(_ROTARY, _ROTARY, single=True), equal=("tail",), fixed=_FIXED),
    Example("complex", complex_numbers, _made(_ROTARY, _ROTARY // 2, single=True), equal=_OF_COMPLEX, fixed=_FIXED),
    Example("looked up", looked_up, _looked_up, equal=("tail", "complex_product"), fixed=_FIXED),
)


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for t in (k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def attention(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Both reach one attention product, the keys repeated for groups of queries."""
    return _attended(rotate(q, cos, sin), rotate(k, cos, sin), v)


def apart(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries are used before the keys are there; only parts turn, from where attention is two products and a softmax."""
    q = rotate(q, cos, sin, tail=1, interleaved=1, interleaved_out=1).transpose(2, 3)
    k = torch.cat([v, rotate(k.sin(), cos, sin, tail=1, interleaved=1, interleaved_out=1)], 2).repeat_interleave(2, 1)
    return torch.softmax(torch.matmul(k, q) * 0.3, -1)


def _queries_and_keys(width: int) -> Callable[[torch.dtype, int], tuple[Tensor, ...]]:
    def make(dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (torch.randn(2, heads, 5, width, generator=generator).to(dtype) for heads in (6, 3, 3))
        return q, k, v, *(torch.randn(1, 1, 5, _ROTARY, generator=generator).to(dtype) for _ in range(2))

    return make


PAIRS = (
    Example("attention", attention, _queries_and_keys(_ROTARY), equal=("q_tail", "k_tail"), fixed=_FIXED),
    Example("apart", apart, _queries_and_keys(_WIDTH), fixed=_FIXED),
)
