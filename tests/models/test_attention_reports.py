"""Failures of attention that users of other compilers have reported in public: windows, sinks, odd heads, masks that are more than causal."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recipes import PLAIN, assert_equal, compiled, graphs, tiny, tokens
from torch import Tensor, nn

import hfgraph


def attentions(what: str = "recognised") -> list[hfgraph.report.Site]:
    """Attention sites of the most recent compilation."""
    return [s for s in hfgraph.last_report().sites if s.rule == "attention" and s.status == what]


# --- B15: windows --------------------------------------------------------------------------------------

WINDOWS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "mistral": ("mistral", {"sliding_window": 4}, ["sliding window of 4"] * 2),
    "gemma3": ("gemma3_text", {"head_dim": 16, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}, ["sliding window of 4", "causal"]),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, ["causal", "sliding window of 4"]),
    "longer than the prompt": ("mistral", {"sliding_window": 64}, ["sliding window of 64"] * 2),
}


@pytest.mark.parametrize("case", WINDOWS)
@torch.no_grad()
def test_b15_windows(case: str) -> None:
    """Symbolic sizes: the window is in the report, layer by layer, whether or not the traced prompt reaches it; every length equals eager."""
    kind, config, notes = WINDOWS[case]
    model = tiny(kind, **config)
    f = compiled(model, dynamic=True)
    for length in (9, 3, 5, 70):
        ids = tokens(2, length, seed=length)
        assert_equal(f(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
    assert [s.note for s in attentions()] == notes


@pytest.mark.parametrize("window", [4, 5])
@torch.no_grad()
def test_b15_a_query_sees_exactly_its_window(window: int) -> None:
    """Flip a token: the last logits change for exactly as many positions as the window is wide."""
    model = tiny("mistral", num_hidden_layers=1, sliding_window=window)
    f, ids = compiled(model), tokens(1, 12)
    before = f(ids, use_cache=False).logits[0, -1]
    changed = []
    for j in range(12):
        other = ids.clone()
        other[0, j] = (ids[0, j] + 1) % 97
        if not torch.equal(f(other, use_cache=False).logits[0, -1], before):
            changed.append(j)
    assert changed == list(range(12 - window, 12))


# --- B16: sinks ----------------------------------------------------------------------------------------

GPT_OSS = {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}


@torch.no_grad()
def test_b16_sinks() -> None:
    """They are part of the op; removed, they would be missed."""
    model, ids = tiny("gpt_oss", **GPT_OSS), tokens(2, 11)
    want = model(ids, use_cache=False).logits
    assert_equal(compiled(model)(ids, use_cache=False).logits, want)
    assert len(attentions()) == 2
    for layer in model.model.layers:
        layer.self_attn.sinks.fill_(-1e4)
    assert (model(ids, use_cache=False).logits - want).abs().max() > 1e-2


class WithOwnBias(nn.Module):
    """Attention as somebody may write it tomorrow: weights that are changed between softmax and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.gate = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor, my_new_bias: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * 0.3
        weights = scores.softmax(-1)
        if my_new_bias is not None:
            weights = weights * torch.sigmoid(self.gate + my_new_bias)
        return weights @ v


@torch.no_grad()
def test_b16_what_is_not_understood_is_left_alone() -> None:
    """Nothing is dropped: with its new argument the attention is no attention, and without it is one."""
    torch.manual_seed(0)
    model, x, bias = WithOwnBias().eval(), torch.randn(2, 7, 32), torch.randn(4, 7, 7)
    assert_equal(compiled(model)(x, my_new_bias=bias), model(x, my_new_bias=bias))
    assert not attentions()
    torch._dynamo.reset()
    assert_equal(compiled(model)(x), model(x))
    assert [s.note for s in attentions()] == ["full"]


# --- B23: odd head sizes and ratios --------------------------------------------------------------------

HEADS = [(size, *heads) for size in (8, 20, 80) for heads in ((4, 4), (4, 2), (6, 2), (7, 1), (12, 4))]


@pytest.mark.parametrize(("size", "heads", "groups"), HEADS)
@torch.no_grad()
def test_b23_heads(size: int, heads: int, groups: int) -> None:
    """Keys and values are handed over without the repetition of their heads."""
    model = tiny("llama", num_hidden_layers=1, hidden_size=8 * heads, num_attention_heads=heads, num_key_value_heads=groups, head_dim=size)
    f = compiled(model)
    for length in (1, 9):
        ids = tokens(2, length)
        assert_equal(f(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
    nodes = {n.name: n for n in hfgraph.explain(model, tokens(2, 9), use_cache=False).graphs[0].after.nodes}
    (call,) = [n.call for n in nodes.values() if n.call.startswith("attention(")]
    for key in ("k", "v"):
        name = re.search(rf"\b{key}=(\w+)", call)
        assert name is not None and re.fullmatch(rf"f32 \[2, {groups}, \w+, {size}\]", nodes[name[1]].value)


@torch.no_grad()
def test_b23_values_of_another_width_than_keys() -> None:
    model = tiny(
        "deepseek_v3", num_key_value_heads=4, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12, q_lora_rank=16, kv_lora_rank=16,
        n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=16, first_k_dense_replace=1,
    )  # fmt: skip
    ids = tokens(2, 9)
    assert_equal(compiled(model)(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
    assert len(attentions()) == 2


# --- masks ---------------------------------------------------------------------------------------------


def masked(allowed: Any) -> Any:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, allowed(torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])), scale=0.3)

    return attend


@torch.no_grad()
def test_a_mask_without_structure_stays_and_its_first_odd_pair_is_named() -> None:
    """Causal but for one pair: close enough to be taken for causal by whoever tries candidates on a few rows."""
    attend = masked(lambda q, k: (k <= q) | ((q == 4) & (k == 6)))
    x = torch.randn(1, 2, 9, 8)
    assert_equal(compiled(attend)(x, x, x), attend(x, x, x))
    (site,) = attentions()
    assert site.note == "full, mask as a tensor (query 4 and key 6 of 9 x 9 are allowed, which no window, chunk or causal mask explains)"


@torch.no_grad()
def test_packed_positions_are_segments() -> None:
    """Without a mask, positions that begin anew mean several sequences in one row."""
    model = tiny("llama")
    ids, positions = tokens(1, 9), torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    got = compiled(model)(ids, position_ids=positions, use_cache=False).logits
    assert {s.note for s in attentions()} == {"causal, segments"}
    assert_equal(got, model(ids, position_ids=positions, use_cache=False).logits)
    alone = [model(ids[:, a:b], use_cache=False).logits for a, b in ((0, 4), (4, 9))]
    assert_equal(got, torch.cat(alone, 1))


@pytest.mark.parametrize("fill", [float("-inf"), torch.finfo(torch.float32).min])
@torch.no_grad()
def test_rows_that_attend_to_nothing_are_what_the_model_makes_of_them(fill: float) -> None:
    """NaN where it says -inf, the mean of all values where it says a low number."""

    def attend(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        scores = (q @ k.transpose(-1, -2)).masked_fill(padding[:, None, None, :] == 0, fill)
        return scores.softmax(-1) @ v

    q, padding = torch.randn(2, 2, 5, 8), torch.tensor([[0, 0, 0, 0, 0], [0, 1, 1, 1, 1]])
    got = compiled(attend)(q, q, q, padding)
    torch.testing.assert_close(got, attend(q, q, q, padding), equal_nan=True)
    assert len(attentions()) == 1


@torch.no_grad()
def test_a_static_cache_is_read_up_to_a_length_that_only_the_run_knows() -> None:
    from transformers import StaticCache

    model = tiny("llama")
    f = compiled(model)
    caches = [StaticCache(config=model.config, max_cache_len=24) for _ in range(2)]
    for length in (5, 1, 1, 1):
        ids = tokens(2, length, seed=length)
        assert_equal(f(ids, cache=caches[0]).logits, model(ids, cache=caches[1]).logits)
    assert {s.note for s in attentions()} == {"causal, first position known at run time"}


@torch.no_grad()
def test_the_weights_of_an_attention_that_are_returned_are_kept() -> None:
    """They would have to be computed twice: the attention stays as it is, and the report says why."""
    model, ids = tiny("llama", attn_implementation="eager"), tokens(2, 7)
    assert_equal(compiled(model)(ids, output_attentions=True, use_cache=False), model(ids, output_attentions=True, use_cache=False))
    missed = [s for s in hfgraph.last_report().near_misses if s.rule == "attention"]
    assert not attentions() and len(missed) == 2 and "is needed by" in missed[0].reason


def test_the_options_switch_it_off() -> None:
    model, ids = tiny("llama"), tokens(2, 7)
    with torch.no_grad():
        compiled(model, options={**PLAIN, "disable": ["attention"]})(ids, use_cache=False)
    assert not attentions()


@pytest.mark.parametrize(
    ("allowed", "note"),
    [
        (lambda q, k: (k <= q) & (k // 4 // 8 == q // 4 // 8), "causal, chunks of 32"),
        (lambda q, k: (k <= q) & ((q - k) * 0.01 < 0.5), "sliding window of 50"),
        (lambda q, k: (k <= q) & ((q - k) / 3.0 < 20), "sliding window of 60"),
        (lambda q, k: (k <= q) & (q - k < 8192), "sliding window of 8192"),
        (lambda q, k: (k <= q) & (k // 8192 == q // 8192), "causal, chunks of 8192"),
    ],
)
@torch.no_grad()
def test_a_window_shows_whichever_way_it_is_computed(allowed: Any, note: str) -> None:
    """With symbolic sizes, from a prompt that is far too short to reach it."""
    attend, x = masked(allowed), torch.randn(1, 2, 9, 8)
    f = compiled(attend, dynamic=True)
    assert_equal(f(x, x, x), attend(x, x, x))
    assert [s.note for s in attentions()] == [note]
    longer = torch.randn(1, 2, 70, 8)
    assert_equal(f(longer, longer, longer), attend(longer, longer, longer))


@torch.no_grad()
def test_numbers_too_large_to_see_past_are_not_guessed_at() -> None:
    attend, x = masked(lambda q, k: (k <= q) & (q - k < 5000) & (k // 7000 == q // 7000)), torch.randn(1, 2, 9, 8)
    assert_equal(compiled(attend, dynamic=True)(x, x, x), attend(x, x, x))
    (site,) = attentions()
    assert site.note == "full, mask as a tensor (its numbers (5000, 7000) are too large to see what comes after them)"


@torch.no_grad()
def test_masked_scores_that_a_negative_factor_turns_round_are_left_alone() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.transpose(-1, -2)).masked_fill(torch.ones(5, 5).triu(1).bool(), -1e35) * -1e-3
        return scores.softmax(-1) @ v

    x = torch.randn(1, 2, 5, 8)
    assert_equal(compiled(attend)(x, x, x), attend(x, x, x))
    assert not attentions()


# --- what must not be read as more, or less, than it is ------------------------------------------------

LOW = torch.finfo(torch.float32).min
INFINITE = float("-inf")
CAUSAL = torch.ones(5, 5).tril().bool()
SINK = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0])


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) * 0.3


def with_sink(s: Tensor, sink: Tensor) -> Tensor:
    return torch.cat([s, sink.reshape(1, -1, 1, 1).expand(s.shape[0], -1, s.shape[2], 1)], -1)


def gated(s: Tensor, v: Tensor, sink: Tensor, summed: Tensor | None = None) -> Tensor:
    """A sink that is told from the sum of the scores."""
    gate = torch.sigmoid((s if summed is None else summed).logsumexp(-1) - sink)
    return (s.softmax(-1) @ v) * gate.unsqueeze(-1)


def put(x: Tensor, number: float) -> Tensor:
    """A number is written into a tensor, through a view of it."""
    x[..., 0, 3] = number
    return x


def expanded(low: Tensor) -> Tensor:
    """What is written into a tensor shows in the views of it."""
    seen = low.expand(2, 1, 5, 5)
    put(low, 0.2)
    return seen


def late(q: Tensor, k: Tensor, v: Tensor, step: Any) -> Tensor:
    """What scores were made of is written to before they are used, and read again after that."""
    a, b = torch.ones(5, 5).triu(1), torch.ones(5, 5).tril(-4)
    s = step(scores(q, k), a, b)
    put(a, 0.2)
    put(b, 0.3)
    return s.softmax(-1) @ v + a.sum() + b.sum()


def before(q: Tensor, k: Tensor, v: Tensor, start: Tensor, made: Any, step: Any = torch.add) -> Tensor:
    """A mask is made of a tensor that is written to before the mask is used, and read again after that."""
    mask = made(start)
    start[..., 0, 3], start[..., 1, 4] = 0, 1
    return step(scores(q, k), mask).softmax(-1) @ v + start.sum()


def segments(start: Tensor) -> Tensor:
    """Where two entries of a row are equal."""
    rows, at = torch.arange(2)[:, None, None, None], torch.arange(5)
    return start[rows, at[:, None]] != start[rows, at]


ODD: dict[str, Any] = {
    "a number before the cap": lambda q, k, v: (torch.tanh((scores(q, k) + 1.5) / 2.0) * 2.0).softmax(-1) @ v,
    "the row's maximum before the cap": lambda q, k, v: (torch.tanh((s := scores(q, k)) - s.amax(-1, keepdim=True)) * 2.0).softmax(-1) @ v,
    "a bias inside baddbmm before the cap": lambda q, k, v: (
        (torch.tanh(torch.baddbmm(SINK.repeat(10, 5, 1), q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).view(2, 5, 5, 5) / 2.0) * 2.0).softmax(-1) @ v
    ),
    "a number that the sink lacks": lambda q, k, v: with_sink(scores(q, k) + 1.5, SINK).softmax(-1)[..., :-1] @ v,
    "a maximum that the sink lacks": lambda q, k, v: with_sink((s := scores(q, k)) - s.amax(-1, keepdim=True), SINK).softmax(-1)[..., :-1] @ v,
    "a scale that the sink shares": lambda q, k, v: (with_sink(q @ k.transpose(-1, -2), SINK) * 0.3).softmax(-1)[..., :-1] @ v,
    "a bias that the sink shares": lambda q, k, v: (with_sink(scores(q, k), SINK) + SINK[:, None, None]).softmax(-1)[..., :-1] @ v,
    "a sink for each query": lambda q, k, v: torch.cat([scores(q, k), SINK[:, None].expand(2, 5, 5, 1)], -1).softmax(-1)[..., :-1] @ v,
    "distances beside a sink": lambda q, k, v: with_sink(scores(q, k) + 0.7 * (torch.arange(5) + 3.0) * torch.ones(5, 1, 1), SINK).softmax(-1)[..., :-1] @ v,
    "a triangle written to": lambda q, k, v: (scores(q, k) + put(torch.full((5, 5), LOW).triu(1), 0.5)).softmax(-1) @ v,
    "a triangle of something written to": lambda q, k, v: (scores(q, k) + put(torch.full((5, 5), LOW), 0.5).triu(1)).softmax(-1) @ v,
    "a triangle written to behind a view": lambda q, k, v: (scores(q, k) + expanded(torch.full((1, 1, 5, 5), LOW).triu(1))).softmax(-1) @ v,
    "a condition written to": lambda q, k, v: scores(q, k).masked_fill(~put(torch.ones(5, 5).tril().bool(), True), LOW).softmax(-1) @ v,
    "a condition cast and written to": lambda q, k, v: (scores(q, k) + (1 - put(torch.ones(5, 5).tril().bool().float(), 1.0)) * LOW).softmax(-1) @ v,
    "a mask written to": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, put(torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), LOW), 0.4)),
    "a mask over zeros written to": lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, put(torch.zeros(5, 5), 0.4).masked_fill(torch.ones(5, 5).triu(4).bool(), LOW)
    ),
    "a condition written to, the other way round": lambda q, k, v: scores(q, k).masked_fill(put(torch.ones(5, 5).triu(1).bool(), False), LOW).softmax(-1) @ v,
    "a bias written to afterwards": lambda q, k, v: late(q, k, v, lambda s, x, y: s + x + y),
    "conditions written to afterwards": lambda q, k, v: late(q, k, v, lambda s, x, y: s.masked_fill(x > 0.5, LOW).masked_fill(y > 0.5, LOW)),
    "a condition turned round before": lambda q, k, v: before(q, k, v, CAUSAL.logical_not(), lambda m: ~m, lambda s, n: s.masked_fill(~n, LOW)),
    "a condition cast before": lambda q, k, v: before(q, k, v, CAUSAL.clone(), lambda m: (1 - m.float()) * LOW),
    "a bias added up before": lambda q, k, v: before(q, k, v, 0.3 * torch.ones(5, 5), lambda b: b + torch.arange(5.0)),
    "zeros masked before": lambda q, k, v: before(q, k, v, torch.zeros(5, 5), lambda z: z.masked_fill(torch.ones(5, 5).triu(1).bool(), LOW)),
    "segments compared before": lambda q, k, v: before(q, k, v, torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 2]]), segments, lambda s, m: s.masked_fill(m, LOW)),
    "an output squared": lambda q, k, v: torch.mul(o := scores(q, k).softmax(-1) @ v, o),
    "a gate of a number without a sink": lambda q, k, v: ((s := scores(q, k)).softmax(-1) @ v) * torch.sigmoid(1.0 - s.logsumexp(-1, keepdim=True)),
    "positions written to": lambda q, k, v: scores(q, k).masked_fill(put(torch.arange(5).repeat(5, 1), 0) > torch.arange(5)[:, None], LOW).softmax(-1) @ v,
    "a lower triangle": lambda q, k, v: (scores(q, k) + torch.full((5, 5), LOW).tril(-2)).softmax(-1) @ v,
    "a triangle that masks nearly": lambda q, k, v: (scores(q, k) + torch.full((5, 5), -20.0).triu(1)).softmax(-1) @ v,
    "a triangle of which all is masked in a row": lambda q, k, v: (scores(q, k) + torch.full((5, 5), INFINITE).triu(0)).softmax(-1) @ v,
    "a bias subtracted twice over": lambda q, k, v: torch.sub(scores(q, k), SINK, alpha=2).softmax(-1) @ v,
    "a bias subtracted before the scale": lambda q, k, v: ((scores(q, k) - SINK) * 0.5).softmax(-1) @ v,
    "a bias from which scores are subtracted": lambda q, k, v: (SINK - scores(q, k)).softmax(-1) @ v,
    "a gate": lambda q, k, v: gated(scores(q, k), v, SINK[:, None]),
    "a gate for each query": lambda q, k, v: gated(scores(q, k), v, SINK),
    "a gate by other scores": lambda q, k, v: gated((s := scores(q, k)), v, SINK[:, None], s + 1.0),
    "a gate by scores with a number added": lambda q, k, v: gated(scores(q, k) + 1.5, v, SINK[:, None]),
    "a gate by distances": lambda q, k, v: gated(scores(q, k) + 0.7 * (torch.arange(5) + 3.0) * torch.ones(5, 1, 1), v, SINK[:, None]),
    "a gate and a sink": lambda q, k, v: gated(with_sink(scores(q, k), SINK), F.pad(v, (0, 0, 0, 1)), SINK[:, None]),
    "a gate by a column": lambda q, k, v: (
        ((s := scores(q, k)).softmax(-1) @ v) * torch.sigmoid(s.float().logsumexp(-1, keepdim=True) - SINK[:, None, None]).to(v.dtype)
    ),
    "a gate over queries without keys": lambda q, k, v: gated(scores(q, k).masked_fill(torch.arange(5) > torch.arange(5)[:, None] - 2, LOW), v, SINK[:, None]),
    "a gate over queries without keys, -inf": lambda q, k, v: gated(
        scores(q, k).masked_fill(torch.arange(5) > torch.arange(5)[:, None] - 2, float("-inf")), v, SINK[:, None]
    ),
    "queries before the first key": lambda q, k, v: (
        scores(q, k[:, :, :3]).masked_fill(torch.arange(3) > torch.arange(5)[:, None] - 2, LOW).softmax(-1) @ v[:, :, :3]
    ),
    "queries before the first key, -inf": lambda q, k, v: (
        scores(q, k[:, :, :3]).masked_fill(torch.arange(3) > torch.arange(5)[:, None] - 2, float("-inf")).softmax(-1) @ v[:, :, :3]
    ),
    "not of two numbers": lambda q, k, v: scores(q, k).masked_fill(((torch.arange(5) & 1) == 0).logical_not().logical_not(), LOW).softmax(-1) @ v,
}


# In how many of these the gate is a sink.
GATES = {"a gate": 1, "a gate by a column": 1, "a gate over queries without keys": 1, "a gate by distances": 1}
GATES |= {n: 0 for n in ODD if n.startswith("a gate") and n not in GATES}


@pytest.mark.parametrize("name", ODD)
@torch.no_grad()
def test_odd_scores_are_what_the_model_says(name: str) -> None:
    """As many heads as queries, so that neither is taken for the other."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 5, 5, 8, generator=generator) for _ in range(3))
    torch.testing.assert_close(compiled(ODD[name])(q, k, v), ODD[name](q, k, v), atol=1e-5, rtol=0, equal_nan=True)
    if name in GATES:
        assert len(attentions()) == GATES[name]


@pytest.mark.parametrize("fill", [float("-inf"), LOW])
@torch.no_grad()
def test_rows_without_keys_in_a_float_mask(fill: float) -> None:
    """PyTorch's operator gives zeros for -inf, where a softmax that is written out gives NaN."""

    def attend(q: Tensor, padding: Tensor) -> Tensor:
        mask = torch.zeros(2, 1, 1, 5).masked_fill(padding[:, None, None] == 0, fill)
        return F.scaled_dot_product_attention(q, q, q, mask)

    q, padding = torch.randn(2, 2, 5, 8), torch.tensor([[0, 0, 0, 0, 0], [0, 1, 1, 1, 1]])
    assert_equal(compiled(attend)(q, padding), attend(q, padding))
    assert len(attentions()) == 1


def causal() -> Tensor:
    return torch.ones(5, 5).tril().bool()


def pads(padding: Tensor) -> Tensor:
    return torch.zeros(2, 1, 1, 5).masked_fill(padding[:, None, None] == 0, LOW)


STACKED: dict[str, tuple[Any, str]] = {
    "a mask added to scores masked before": (lambda s, p: torch.where(causal(), s, LOW) + pads(p), "full, bias as a tensor"),
    "to scores filled before": (lambda s, p: s.masked_fill(~causal(), LOW) + pads(p), "full, bias as a tensor"),
    "two masks added": (lambda s, p: s + torch.zeros(5, 5).masked_fill(~causal(), LOW) + pads(p), "full, bias as a tensor"),
    "a sum of two masks added": (lambda s, p: s + (torch.zeros(5, 5).masked_fill(~causal(), LOW) + pads(p)), "full, bias as a tensor"),
    "numbers that do not overflow": (lambda s, p: s.masked_fill(~causal(), -1e35) + pads(p) * 1e-3, "full, bias as a tensor"),
    "a mask and a bias": (lambda s, p: torch.where(causal(), s + SINK, LOW) + pads(p), "full, bias as a tensor"),
    "infinite, so no less": (
        lambda s, p: s.masked_fill(~causal(), INFINITE) + torch.zeros(2, 1, 1, 5).masked_fill(p[:, None, None] == 0, INFINITE),
        "causal, padding as a tensor",
    ),
    "written over a mask that was added": (lambda s, p: torch.where(causal(), s + pads(p), LOW), "causal, padding as a tensor"),
    "lifted again": (lambda s, p: torch.maximum(torch.where(causal(), s, LOW) + pads(p), torch.tensor(LOW)), "causal, padding as a tensor"),
}


@torch.no_grad()
def test_a_mask_from_outside_over_scores_masked_before() -> None:
    """The mask is a graph's input, after a break for instance: what it holds is not known."""

    def attend(q: Tensor, mask: Tensor) -> Tensor:
        return (scores(q, q).masked_fill(~causal(), -1e35) + mask).softmax(-1) @ q

    def bounded(q: Tensor, mask: Tensor) -> Tensor:
        return torch.maximum(scores(q, q).masked_fill(~causal(), LOW) + mask, torch.tensor(LOW)).softmax(-1) @ q

    q, mask = torch.randn(2, 2, 5, 8), pads(torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]))
    assert_equal(compiled(attend)(q, mask), attend(q, mask))
    assert [s.note for s in attentions()] == ["full, bias as a tensor"]
    assert_equal(compiled(bounded)(q, mask), bounded(q, mask))
    assert [s.reason for s in attentions("near miss")] == ["attention: scores are bounded, and what is added to them may be a mask itself"]


@torch.no_grad()
def test_masks_added_to_each_other_and_then_rounded() -> None:
    """One mask is infinite in the narrower dtype, the other one is not."""

    def attend(q: Tensor, padding: Tensor) -> Tensor:
        return (scores(q, q).masked_fill(~causal(), -1e35) + pads(padding)).to(torch.bfloat16).softmax(-1).float() @ q

    q, padding = torch.randn(2, 2, 5, 8), torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    torch.testing.assert_close(compiled(attend)(q, padding), attend(q, padding), atol=2e-2, rtol=0, equal_nan=True)
    assert [s.reason for s in attentions("near miss")] == ["attention: the scores are rounded to torch.bfloat16"]


@torch.no_grad()
def test_a_mask_that_is_a_number_of_the_model() -> None:
    """The number is a tensor, and the mask a product with it: no condition is seen in it, and it is not taken for a small bias."""

    def attend(q: Tensor, padding: Tensor) -> Tensor:
        return (scores(q, q).masked_fill(~causal(), LOW) + (padding == 0)[:, None, None].float() * torch.tensor(LOW)).softmax(-1) @ q

    q, padding = torch.randn(2, 2, 5, 8), torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    assert_equal(compiled(attend)(q, padding), attend(q, padding))


@pytest.mark.parametrize("name", STACKED)
@torch.no_grad()
def test_a_pair_that_fails_two_masks(name: str) -> None:
    """GPT-Neo, padded on the left: a query without keys looks at the pairs that fail one of the masks, and not at those that fail both."""
    masked, note = STACKED[name]

    def attend(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        return masked(scores(q, k), padding).softmax(-1) @ v

    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 5, 5, 8, generator=generator) for _ in range(3))
    padding = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    torch.testing.assert_close(compiled(attend)(q, k, v, padding), attend(q, k, v, padding), atol=1e-5, rtol=0, equal_nan=True)
    assert [s.note for s in attentions()] == [note]


@pytest.mark.parametrize("fill", [float("-inf"), LOW])
@pytest.mark.parametrize("same", [True, False], ids=["the same mask", "another mask"])
@torch.no_grad()
def test_weights_that_are_masked_again(fill: float, same: bool) -> None:
    """CPM-Ant: by the same mask, so that a query without keys gets zeros. By another one it is another function."""

    def attend(q: Tensor, padding: Tensor) -> Tensor:
        masked = (padding == 0)[:, None, None]
        weights = scores(q, q).masked_fill(masked, fill).softmax(-1)
        return weights.masked_fill(masked if same else padding[:, None, None] == 1, 0.0) @ q

    q, padding = torch.randn(2, 2, 5, 8), torch.tensor([[0, 0, 0, 0, 0], [0, 1, 1, 1, 2]])
    torch.testing.assert_close(compiled(attend)(q, padding), attend(q, padding), atol=1e-5, rtol=0, equal_nan=True)
    assert len(attentions()) == same
    assert [s.reason for s in attentions("near miss")] == ([] if same else ["attention: the weights are masked in another way than the scores"])


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_triangle_is_cut_of_the_number_that_its_dtype_holds(narrow: torch.dtype) -> None:
    """In the first row nothing counts: NaN where the number became infinite."""

    def attend(x: Tensor) -> Tensor:
        return (scores(x, x) + torch.full((5, 5), LOW).to(narrow).triu(0)).softmax(-1) @ x

    x = torch.randn(1, 2, 5, 8).to(narrow)
    torch.testing.assert_close(compiled(attend)(x), attend(x), atol=2e-2, rtol=0, equal_nan=True)
    assert len(attentions()) == 1


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_the_lowest_number_of_one_dtype_is_infinite_in_another(narrow: torch.dtype) -> None:
    """Masked in float32, then cast: a query without keys is NaN."""

    def attend(q: Tensor, padding: Tensor) -> Tensor:
        return scores(q, q).masked_fill(padding[:, None, None] == 0, LOW).to(narrow).softmax(-1).float() @ q

    def added(q: Tensor, padding: Tensor) -> Tensor:
        mask = torch.zeros(2, 1, 1, 5).masked_fill(padding[:, None, None] == 0, LOW).to(narrow)
        return (scores(q, q) + mask.float()).softmax(-1) @ q

    q, padding = torch.randn(2, 2, 5, 8), torch.tensor([[0, 0, 0, 0, 0], [0, 1, 1, 1, 1]])
    for f in (attend, added):
        got, want = compiled(f)(q, padding), f(q, padding)
        assert want.isnan().any()
        torch.testing.assert_close(got, want, atol=2e-2, rtol=0, equal_nan=True)


@torch.no_grad()
def test_a_counter_that_stops_counting_is_no_start() -> None:
    def attend(q: Tensor, k: Tensor, length: Tensor) -> Tensor:
        mask = torch.arange(24) <= torch.arange(2)[:, None] + length.clamp_max(10)
        return F.scaled_dot_product_attention(q, k, k, mask, scale=0.3)

    q, k = torch.randn(1, 2, 2, 8), torch.randn(1, 2, 24, 8)
    f = compiled(attend)
    for length in (3, 9, 10, 15):
        assert_equal(f(q, k, torch.tensor(length)), attend(q, k, torch.tensor(length)))
    assert [s.note for s in attentions()] == ["full, mask as a tensor"]


@torch.no_grad()
def test_keys_written_after_their_heads_were_repeated() -> None:
    def attend(q: Tensor, cache: Tensor) -> Tensor:
        k = cache[:, :, None].expand(2, 2, 2, 5, 8).reshape(2, 4, 5, 8)
        cache.zero_()
        return F.scaled_dot_product_attention(q, k, k, scale=0.3)

    q, cache = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    assert_equal(compiled(attend)(q, cache.clone()), attend(q, cache.clone()))


@torch.no_grad()
def test_layers_do_not_share_a_mask_that_is_written_between_them() -> None:
    def two(q: Tensor, mask: Tensor) -> Tensor:
        first = F.scaled_dot_product_attention(q, q, q, mask, scale=0.3)
        mask.view(-1).logical_not_()
        return first + F.scaled_dot_product_attention(q, q, q, mask, scale=0.3)

    q, mask = torch.randn(2, 2, 5, 8), CAUSAL.repeat(2, 1, 1, 1)
    assert_equal(compiled(two)(q, mask.clone()), two(q, mask.clone()))


@pytest.mark.parametrize("read", ["after", "before"])
@torch.no_grad()
def test_a_mask_from_outside_that_is_written_to(read: str) -> None:
    """The model reads it after that, or has read it before."""

    def attend(q: Tensor, hidden: Tensor) -> Tensor:
        shown = ~hidden
        put(hidden, False)
        return scores(q, q).masked_fill(hidden if read == "after" else ~shown, LOW).softmax(-1) @ q

    q = torch.randn(2, 3, 5, 8)
    masks = [torch.ones(5, 5).triu(1).bool() for _ in range(2)]
    assert_equal(compiled(attend)(q, masks[0]), attend(q, masks[1]))
    assert_equal(masks[0], masks[1])


@torch.no_grad()
def test_reading_a_mask_adds_no_guard() -> None:
    """A batch of one and a prompt of one token are served by the graph for symbolic sizes, padded or not."""
    model = tiny("llama")
    f = compiled(model, dynamic=True)
    torch._dynamo.utils.counters.clear()
    for shape in ((2, 9), (3, 7), (4, 20)):
        f(tokens(*shape), attention_mask=torch.ones(shape, dtype=torch.long), use_cache=False)
    assert graphs() == 1
