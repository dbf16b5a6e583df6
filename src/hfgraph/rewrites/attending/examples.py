"""Spellings of attention, for the tests: each is written as some model writes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hfgraph.graph.recogniser import Example

_SCALE = 0.3


def _tensors(queries: int = 11, keys: int = 11, heads: int = 4, groups: int = 4) -> Callable[..., tuple[Tensor, ...]]:
    """Arguments q, k, v, the last two with as many heads as there are groups."""

    def make(dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        shapes = [(3, heads, queries, 8), (3, groups, keys, 8), (3, groups, keys, 6)]
        return tuple(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)

    return make


def _more(make: Callable[..., tuple[Tensor, ...]], *more: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    """The same arguments and some that do not depend on a seed; floats among them in the same dtype."""
    return lambda dtype, seed: (*make(dtype, seed), *(t.to(dtype) if t.is_floating_point() else t for t in more))


def _offsets(q: Tensor, k: Tensor) -> Tensor:
    """key - query."""
    return torch.arange(k.shape[-2], device=q.device) - torch.arange(q.shape[-2], device=q.device)[:, None]


def _low(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to be added: zero where a key counts."""
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def _repeated(x: Tensor, times: int) -> Tensor:
    batch, groups, length, width = x.shape
    return x[:, :, None].expand(batch, groups, times, length, width).reshape(batch, groups * times, length, width)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A boolean table of pairs."""
    return F.scaled_dot_product_attention(q, k, v, _offsets(q, k) <= 0, scale=_SCALE)


def causal_flag(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By the flag alone."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=_SCALE)


def tail(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries that are the last positions of a longer sequence."""
    return F.scaled_dot_product_attention(q, k, v, _offsets(q, k) <= k.shape[-2] - q.shape[-2], scale=_SCALE)


def grouped_window_padded(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
    """Heads of a group repeated, a sliding window, and padding."""
    offsets = _offsets(q, k)
    mask = (offsets <= 0) & (offsets > -4) & padding[:, None, None, :].bool()
    return F.scaled_dot_product_attention(q, _repeated(k, 2), _repeated(v, 2), mask, scale=_SCALE)


def chunks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Within chunks of four."""
    rows, columns = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    return F.scaled_dot_product_attention(q, k, v, (columns <= rows) & (columns // 4 == rows // 4), scale=_SCALE)


def packed(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    """Several sequences in one row; each begins where positions do not count on."""
    segments = (torch.diff(positions, prepend=positions[:, :1] - 1) != 1).cumsum(-1)
    count = torch.arange(q.shape[-2])
    batch, rows, columns = torch.arange(q.shape[0])[:, None, None, None], count[:, None], count
    mask = (positions[batch, columns] <= positions[batch, rows]) & (segments[batch, columns] == segments[batch, rows])
    return F.scaled_dot_product_attention(q, k, v, mask, scale=_SCALE)


def static_cache(q: Tensor, k: Tensor, v: Tensor, length: Tensor) -> Tensor:
    """Keys beyond `length` and the queries are there, and not yet written."""
    mask = torch.arange(k.shape[-2]) <= torch.arange(q.shape[-2])[:, None] + length
    return F.scaled_dot_product_attention(q, k, v, mask, scale=_SCALE)


def spelled(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
    """Low scores added, softmax in float32."""
    allowed = (_offsets(q, k) <= 0) & padding[:, None, None, :].bool()
    scores = torch.matmul(q, k.transpose(2, 3)) * _SCALE + _low(allowed, q.dtype)
    return torch.matmul(torch.softmax(scores, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype), v)


def filled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Masked scores replaced by -inf."""
    scores = (torch.matmul(q, k.transpose(2, 3)) / 4.0).masked_fill(_offsets(q, k) > 0, float("-inf"))
    return torch.matmul(scores.softmax(-1), v)


def triangle(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A triangle of -inf, added; heads of a group repeated one by one."""
    length = q.shape[-2]
    low = torch.full((length, length), float("-inf"), dtype=q.dtype).triu(diagonal=1)
    k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
    return torch.matmul((torch.matmul(q, k.transpose(2, 3)) * _SCALE + low).softmax(-1), v)


def repeated_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads repeated while positions still stand before them."""
    k, v = (t.transpose(1, 2) for t in (k, v))
    batch, length, groups, _ = k.shape
    k, v = (t[:, :, :, None].expand(batch, length, groups, 2, t.shape[-1]).reshape(batch, length, groups * 2, t.shape[-1]) for t in (k, v))
    return F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2), is_causal=True, scale=_SCALE)


def band(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """An encoder's window, to both sides."""
    near = _offsets(q, k).abs() <= 3
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * _SCALE
    return torch.einsum("bhqk,bhkd->bhqd", scores.masked_fill(~near, torch.finfo(q.dtype).min).softmax(-1), v)


def capped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores bounded by tanh before they are masked."""
    scores = torch.tanh(torch.matmul(q, k.transpose(2, 3)) * _SCALE / 5.0) * 5.0
    scores = scores + _low(_offsets(q, k) <= 0, q.dtype)
    return torch.matmul(scores.softmax(-1), v)


def sinks(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
    """One more score for each head, of a key without a value, and the row's maximum taken off."""
    scores = torch.matmul(q, k.transpose(2, 3)) * _SCALE
    scores = scores.masked_fill(_offsets(q, k) > 0, torch.finfo(q.dtype).min)
    joined = torch.cat([scores, sink.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[-2], -1)], dim=-1)
    joined = joined - joined.max(dim=-1, keepdim=True).values
    return torch.matmul(joined.softmax(-1)[..., :-1], v)


def gated(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
    """A sink as a gate on the output, told from the sum of the scores."""
    scores = torch.matmul(q, k.transpose(2, 3)) * _SCALE + _low(_offsets(q, k) <= 0, q.dtype)
    gate = (torch.logsumexp(scores, dim=-1) - sink.view(1, -1, 1)).to(torch.promote_types(q.dtype, torch.float32)).sigmoid()
    out = torch.matmul(torch.softmax(scores, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype), v)
    return out * gate.unsqueeze(-1).to(out.dtype)


def alibi(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads and sequences in one dim, the bias inside `baddbmm`."""
    batch, heads, length, _ = q.shape
    q, k, v = (t.reshape(batch * heads, length, t.shape[-1]) for t in (q, k, v))
    slopes = torch.pow(2.0, -2.0 * torch.arange(1, heads + 1))
    bias = (slopes[:, None, None] * torch.arange(length)).repeat(batch, 1, 1).to(q.dtype)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=1.0, alpha=_SCALE).view(batch, heads, length, length)
    scores = scores + _low(_offsets(q, k) <= 0, q.dtype)
    out = torch.bmm(scores.softmax(-1).view(batch * heads, length, length), v)
    return out.view(batch, heads, length, v.shape[-1])


def subtracted(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
    """Sequences and heads in one dim, how many sequences is left to be told; what is masked loses a million."""
    batch, heads, length, _ = q.shape
    q, k, v = (t.reshape(batch * heads, length, t.shape[-1]) for t in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2) * _SCALE).view(-1, heads, length, length)
    weights = (scores - 1e6 * (1 - padding[:, None, None, :].to(q.dtype))).softmax(-1)
    return torch.bmm(weights.view(batch * heads, length, length), v).view(batch, heads, length, v.shape[-1])


def relative_bias(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """Scores that are not scaled, with a learned bias by distance, which has a bound, as Swin-v2's."""
    bias = (4.0 * table.sigmoid())[(_offsets(q, k) + 10).clamp(0, 20)].permute(2, 0, 1)[None]
    return torch.matmul((torch.matmul(q, k.transpose(2, 3)) + bias).softmax(-1), v)


_PADDING = torch.tensor([[0, 0, *[1] * 9], [1] * 11, [0, *[1] * 10]])
_PACKED = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6, 0, 1, 0, 1], [*range(11)]])
_TABLE = torch.linspace(-2, 2, 84).reshape(21, 4).sin()


def _example(name: str, function: Callable[..., Tensor], make: Callable[..., tuple[Tensor, ...]]) -> Example:
    """Numbers of heads and widths do not vary in models."""
    return Example(name, function, make, fixed=(2, 4, 6, 8, 21))


EXAMPLES: tuple[Example, ...] = (
    _example("causal", causal, _tensors()),
    _example("causal flag", causal_flag, _tensors()),
    _example("queries at the end", tail, _tensors(queries=5)),
    _example("grouped heads, window, padding", grouped_window_padded, _more(_tensors(groups=2), _PADDING)),
    _example("chunks", chunks, _tensors()),
    _example("packed", packed, _more(_tensors(), _PACKED)),
    _example("static cache", static_cache, _more(_tensors(queries=3, keys=16), torch.tensor(5))),
    _example("spelled out", spelled, _more(_tensors(), _PADDING)),
    _example("filled with -inf", filled, _tensors()),
    _example("a triangle, groups interleaved", triangle, _tensors(groups=2)),
    _example("groups repeated before heads", repeated_first, _tensors(groups=2)),
    _example("band", band, _tensors()),
    _example("softcap", capped, _tensors()),
    _example("sinks", sinks, _more(_tensors(), torch.tensor([0.5, -1.0, 2.0, 0.0]))),
    _example("a sink as a gate", gated, _more(_tensors(), torch.tensor([0.5, -1.0, 2.0, 0.0]))),
    _example("ALiBi", alibi, _tensors()),
    _example("a mask subtracted", subtracted, _more(_tensors(), _PADDING)),
    _example("relative bias", relative_bias, _more(_tensors(), _TABLE)),
)
