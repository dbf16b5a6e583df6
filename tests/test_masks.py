"""Masks and scores that look like something else where little is tried: sizes that are not known, numbers that meet, rows without keys, casts, random numbers.

Each is compared with eager at every call; some must be left as tensors, and some must still be read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import hfgraph

LOW = torch.finfo(torch.float32).min
PLAIN = {"inductor": False, "strict": True, "merge_always": True}


def qkv(length: int = 13, batch: int = 2, heads: int = 2, keys: int = 0, by: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, heads, n, 8, generator=generator) * by for n in (length, keys or length, keys or length))


def at(q: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the pairs."""
    count = torch.arange(q.shape[-2])
    return count[:, None], count


def by(mask: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Causal attention that also asks for a condition on (query, key)."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = at(q)
        return F.scaled_dot_product_attention(q, k, v, (j <= i) & mask(i, j))

    return attend


def guarded(mask: Callable[[Tensor, Tensor], Tensor], admits: Callable[[int], bool]) -> Callable[..., Tensor]:
    """The same, for some lengths only."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not admits(q.shape[-2]):
            raise ValueError(q.shape)
        return by(mask)(q, k, v)

    return attend


def triangles(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).tril().triu(-4299)
    return F.scaled_dot_product_attention(q, k, v, mask)


def counted_from_zero(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i = torch.arange(0, q.shape[-2])
    return F.scaled_dot_product_attention(q, k, v, (i <= i[:, None]) & (i[:, None] - i < 4300))


def summed_up(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i = torch.ones(q.shape[-2], dtype=torch.long).cumsum(0)
    return F.scaled_dot_product_attention(q, k, v, (i <= i[:, None]) & (i[:, None] - i < 4300))


def rounded_positions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i = torch.arange(q.shape[-2], dtype=torch.bfloat16)
    return F.scaled_dot_product_attention(q, k, v, i <= i[:, None])


def by_length(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = at(q)
    return F.scaled_dot_product_attention(q, k, v, (i - j).abs() <= max(4, q.shape[-2] // 8))


def by_sequence(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = at(q)
    return F.scaled_dot_product_attention(q, k, v, (j <= i) | (torch.arange(q.shape[0])[:, None, None, None] >= 2))


class Biased(torch.nn.Module):
    """A bias that the model has learnt holds no mask: nothing keeps PyTorch's fused operator from taking it."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.randn(2, 13, 13))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT + self.bias, -1) @ v


@dataclass(frozen=True)
class Case:
    """A function, the arguments of several calls, and what its report says of the mask in the last graph."""

    function: Callable[..., Tensor]
    calls: tuple[tuple[Any, ...], ...]
    words: str


def lengths(function: Callable[..., Tensor], *calls: tuple[Tensor, ...], words: str = "mask as a tensor") -> Case:
    return Case(function, calls, words)


LONG = (qkv(20, 1, 1), qkv(4400, 1, 1))
# In graphs whose sizes are symbols. The second call is longer than everything that the first shows.
SYMBOLIC = {
    "window, lengths of 8": lengths(guarded(lambda i, j: i - j < 64, lambda n: n % 8 == 0), qkv(32), qkv(128), words="sliding window of 64"),
    "window, few lengths": lengths(guarded(lambda i, j: i - j < 64, lambda n: n <= 68), qkv(32), qkv(68), words="sliding window of 64"),
    "window, lengths of 512": lengths(guarded(lambda i, j: i - j < 64, lambda n: n % 512 == 0), qkv(512, 1, 1), qkv(1024, 1, 1)),
    "window from both sides": lengths(by(lambda i, j: i - 30 < j + 30), qkv(), qkv(100), words="sliding window of 60"),
    "window, doubled by a sum": lengths(by(lambda i, j: i - j < (i * 0 + 30) + (i * 0 + 30)), qkv(), qkv(100), words="sliding window of 60"),
    "this block and the last": lengths(by(lambda i, j: j >= i // 64 * 64 - 64), qkv(), qkv(200)),
    "window of blocks": lengths(by(lambda i, j: i // 8 - j // 8 < 8), qkv(20), qkv(100)),
    "near, or every 16th": lengths(by(lambda i, j: (i - j < 16) | ((i - j) % 16 == 0)), qkv(20), qkv(100)),
    "blocks by shift": lengths(by(lambda i, j: i >> 6 == j >> 6), qkv(20), qkv(200)),
    "blocks": lengths(by(lambda i, j: i // 16 == j // 16), qkv(20), qkv(100), words="chunks of 16"),
    "large blocks": lengths(by(lambda i, j: i // 512 == j // 512), qkv(20), qkv(1300, 1, 1), words="chunks of 512"),
    "root of the distance": lengths(by(lambda i, j: (i - j).float().sqrt() < 8), qkv(), qkv(100)),
    "logarithm of the distance": lengths(by(lambda i, j: torch.log1p((i - j).abs().float()) < 4), qkv(), qkv(100)),
    "triangles": lengths(triangles, *LONG),
    "positions from zero": lengths(counted_from_zero, *LONG, words="sliding window of 4300"),
    "positions summed up": lengths(summed_up, *LONG),
    "positions in bfloat16": lengths(rounded_positions, qkv(), qkv(400)),
    "window that grows": lengths(by_length, qkv(), qkv(100)),
    "by the number of the sequence": lengths(by_sequence, qkv(13, 4), qkv(13, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", SYMBOLIC)
@torch.no_grad()
def test_what_holds_where_it_was_tried_is_not_taken_to_hold_at_all(name: str) -> None:
    case = SYMBOLIC[name]
    compiled = torch.compile(case.function, backend="hfgraph", options=PLAIN)
    for given in case.calls:
        for tensor in given:
            torch._dynamo.mark_dynamic(tensor, 0 if name == "by the number of the sequence" else 2)
        torch.testing.assert_close(compiled(*given), case.function(*given), atol=1e-5, rtol=0, equal_nan=True)
    assert [n for n in notes() if case.words in n]


def notes() -> list[str]:
    """What the report says of the attentions that were recognised."""
    return [s.note for s in hfgraph.last_report().sites if s.rule == "attention" and s.status == "recognised"]


# --- scores, with sizes that are known ----------------------------------------------------------------


def weighted(scores: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1) @ v


def product(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) * 0.3


def floor(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = product(q, k).masked_fill(~keep[:, None, None], float("-inf"))
    return weighted(torch.max(scores, torch.tensor(LOW)), v)


def floor_of_a_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return weighted(torch.max(product(q, k) + mask, torch.tensor(LOW)), v)


def scaled_floor(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = product(q, k).masked_fill(~keep[:, None, None], LOW)
    return weighted(torch.max(scores, torch.tensor(LOW)) * 2, v)


def row_maximum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = product(q, k)
    return weighted(scores - scores.amax(-1), v)


def whole_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return weighted(product(q, k) + bias.to(torch.int32), v)


def rounded_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return weighted(product(q, k) + bias.bfloat16().float(), v)


def rounded_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weighted(product(q, k).bfloat16().float(), v)


def rounded_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(product(q, k), -1).to(torch.float8_e4m3fn).float() @ v


def whole_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weighted(q @ k.mT * torch.full((), 2.7).to(torch.int64), v)


def whole_sink(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
    column = sink.to(torch.int32).float().reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[-2], -1)
    return torch.softmax(torch.cat([product(q, k), column], -1), -1)[..., :-1] @ v


def given_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return weighted(product(q, k) + mask, v)


def picked_mask(q: Tensor, k: Tensor, v: Tensor, masks: Tensor, which: Tensor) -> Tensor:
    return weighted(product(q, k) + masks[which][:, None], v)


def overflowing(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return weighted((q @ k.mT).masked_fill(~keep[:, None, None], LOW) * 2.0, v)


def added_in_half(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    q, k, v = q.half(), k.half(), v.half()
    low = (1 - keep[:, None, None].to(q.dtype)) * torch.finfo(q.dtype).min
    return weighted(q @ k.mT + low, v)


def mask_in_float32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.half(), k.half(), v.half()
    return F.scaled_dot_product_attention(q, k, v, torch.full((q.shape[-2], k.shape[-2]), -1e30))


def negative_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = at(q)
    return weighted((q @ k.mT * -0.3).masked_fill(j > i, float("-inf")), v)


def packed(q: Tensor, k: Tensor, v: Tensor, ids: Tensor, condition: Callable[[Tensor], Tensor]) -> Tensor:
    i, j = at(q)
    b = torch.arange(q.shape[0])[:, None, None, None]
    segments = (torch.diff(ids, prepend=ids[:, :1] - 1) != 1).cumsum(-1)
    same = segments[b, j] == segments[b, i]
    return F.scaled_dot_product_attention(q, k, v, (ids[b, j] <= ids[b, i]) & same & (condition(ids)[b, j] == condition(ids)[b, i]))


def blocks_of_positions(q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    return packed(q, k, v, ids, lambda p: p // 50)


def positions_that_are_none(q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    return packed(q, k, v, ids, lambda p: p >= 0)


def window_over_a_cache(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    j = torch.arange(k.shape[-2])
    return F.scaled_dot_product_attention(q, k, v, ((j <= t) & (t - j < 64))[None])


def no_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return by(lambda i, j: i - j < 3)(q, k, v)


KEEP = torch.ones(2, 13, dtype=torch.bool)
KEEP[1] = False  # a sequence without a key
HOLES = torch.zeros(2, 1, 13, 13)
HOLES[0, 0, 3] = float("-inf")
POSITIONS = torch.arange(13).expand(2, 13).contiguous()
SPARSE = torch.cat([torch.arange(7), torch.full((6,), -5) - torch.arange(6)]).expand(2, 13).contiguous()
SCORES = {
    "floor": Case(floor, ((*qkv(), KEEP),), "padding"),
    "floor times a scale": Case(scaled_floor, ((*qkv(), KEEP),), "padding"),
    "floor of a mask": Case(floor_of_a_mask, ((*qkv(), HOLES),), ""),
    "row maximum along queries": Case(row_maximum, (qkv(batch=1, heads=1),), ""),
    "bias of whole numbers": Case(whole_bias, ((*qkv(), torch.linspace(-2, 2, 169).view(13, 13)),), "bias"),
    "bias in bfloat16": Case(rounded_bias, ((*qkv(), torch.linspace(-9, 9, 169).view(13, 13)),), "bias"),
    "scores in bfloat16": Case(rounded_scores, (qkv(by=3.0),), ""),
    "weights in float8": Case(rounded_weights, (qkv(by=3.0),), ""),
    "scale of whole numbers": Case(whole_scale, (qkv(),), "full"),
    "sinks of whole numbers": Case(whole_sink, ((*qkv(), torch.tensor([0.9, 2.7])),), ""),
    "a mask of the caller": Case(given_mask, ((*qkv(), HOLES),), "bias"),
    "one of the caller's masks": Case(picked_mask, ((*qkv(), HOLES[:, 0], torch.tensor([1, 0])),), "bias"),
    "fill times a scale": Case(overflowing, ((*qkv(), KEEP),), "padding"),
    "mask added in float16": Case(added_in_half, ((*qkv(by=4.0), KEEP),), "bias"),
    "mask in float32, queries in float16": Case(mask_in_float32, (qkv(),), ""),
    "negative scale": Case(negative_scale, (qkv(),), "causal"),
    "packed, in blocks of positions": Case(blocks_of_positions, ((*qkv(), POSITIONS), (*qkv(), POSITIONS + 44)), "mask as a tensor"),
    "packed, with positions for none": Case(positions_that_are_none, ((*qkv(), POSITIONS), (*qkv(), SPARSE)), "segments"),
    "a cache that is full": Case(
        window_over_a_cache, tuple((*qkv(1, keys=50), torch.tensor(t)) for t in (5, 70, 100, 200)), "sliding window of 64, first position"
    ),
    "no queries": Case(no_queries, (qkv(0),), "full"),
}


@pytest.mark.parametrize("name", SCORES)
@torch.no_grad()
def test_scores_are_eagers(name: str) -> None:
    case = SCORES[name]
    compiled = torch.compile(case.function, backend="hfgraph", options=PLAIN, dynamic=False)
    for given in case.calls:
        got, want = compiled(*given), case.function(*given)
        torch.testing.assert_close(got, want, atol=1e-5 if want.dtype is torch.float32 else 2e-3, rtol=0, equal_nan=True)
    assert [n for n in notes() if case.words in n] if case.words else not notes()


@torch.no_grad()
def test_a_parameter_is_no_mask_of_the_callers() -> None:
    """One that is given may be -inf throughout a row, and then the softmax is the model's own."""
    model, given = Biased(), qkv()
    for function, args, masked in ((model, given, []), (given_mask, (*given, HOLES), [float("-inf")])):
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(function, backend="hfgraph", options=PLAIN)(*args), function(*args), atol=1e-5, rtol=0, equal_nan=True)
        (graph,) = hfgraph.explain(function, *args).graphs
        calls = [n.call for n in graph.after.nodes if n.label == "attention"]
        assert [float("-inf") for c in calls if "masked=-inf" in c] == masked and calls


def random_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, torch.rand(1, k.shape[-2]) < 0.7)


def random_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = at(q)
    return F.scaled_dot_product_attention(q, k, v, (j <= i) & (i - j < torch.randint(1, 6, ())))


def random_slopes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weighted(product(q, k) + torch.rand(q.shape[1])[:, None, None] * torch.arange(k.shape[-2]), v)


@pytest.mark.parametrize("function", (random_keys, random_window, random_slopes))
@torch.no_grad()
def test_random_masks_are_drawn_at_every_call(function: Callable[..., Tensor]) -> None:
    compiled, given = torch.compile(function, backend="hfgraph", options=PLAIN), qkv()
    for seed in range(6):
        torch.manual_seed(seed)
        want = function(*given)
        torch.manual_seed(seed)
        torch.testing.assert_close(compiled(*given), want, atol=1e-5, rtol=0)


def one_side_padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weighted(product(q, k).masked_fill(~(KEEP[:, None, :, None] & KEEP[:, None, None]), LOW), v)


def twice_masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = at(q)
    low = torch.zeros(13, 13).masked_fill(j > i, LOW)
    return weighted(product(q, k) + low + torch.zeros(2, 1, 1, 13).masked_fill(~KEEP[:, None, None], LOW), v)


@pytest.mark.parametrize("function", (one_side_padded, twice_masked))
def test_gradients_of_queries_without_keys(function: Callable[..., Tensor]) -> None:
    """They spread over all keys, as the model's softmax does. PyTorch's fused operator gives the same result, and another gradient."""
    compiled = torch.compile(function, backend="hfgraph", options=PLAIN)
    ours, own = (tuple(t.clone().requires_grad_() for t in qkv()) for _ in range(2))
    for f, given in ((compiled, ours), (function, own)):
        out = f(*given)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    for a, b in zip(ours, own, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)
