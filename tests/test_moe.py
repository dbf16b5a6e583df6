"""Mixtures of experts: what looks like one and is none stays, with a reason; what the report says; generate; a property over random sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

import hfgraph
from hfgraph.graph.canonical import tidy
from hfgraph.graph.recogniser import Recogniser
from hfgraph.graph.rewrite import apply_rules
from hfgraph.kernels.glu import glu
from hfgraph.kernels.moe import moe
from hfgraph.kernels.moe.grouped import grouped_mm
from hfgraph.rewrites import all_rules

RULE = next(r for r in all_rules() if r.name == "moe")
assert isinstance(RULE, Recogniser)
T, K, E, H, I = 7, 2, 4, 16, 24  # noqa: E741
Function = Callable[..., Tensor]


def mixture(
    *,
    k: int = K,
    order: Callable[[Tensor], Tensor] = lambda p: p,
    tokens: Callable[[Tensor, int], Tensor] = lambda p, k: p // k,
    counted: Callable[[Tensor, Tensor], Tensor] = lambda ids, other: ids,
    bins: int = E,
    weighed: Callable[[Tensor, Tensor], Tensor] = lambda p, inverse: p,
    back: Callable[[Tensor, Tensor], Tensor] = lambda inverse, p: inverse,
    gate: Callable[[Tensor, Tensor], Tensor] = lambda g, u: glu(g, u, "silu"),
    second: Callable[[Tensor, Tensor], Tensor] = lambda ends, other: ends,
    bias: Callable[[Tensor, Tensor], Tensor] = lambda sorted_ids, flat: sorted_ids,
    total: Callable[[Tensor], Tensor] = lambda y: y.sum(1),
    descending: bool = False,
) -> Function:
    """A mixture on rows sorted by expert, in which any one step may be another than it should be."""

    def function(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, gate_bias: Tensor, other: Tensor) -> Tensor:
        flat = ids.reshape(-1)
        sorted_ids, p = torch.sort(flat, descending=descending)
        p = order(p)
        inverse = torch.empty_like(p).index_put((p,), torch.arange(p.shape[0]))
        rows = x[tokens(p, k)]

        def ends_of(which: Tensor) -> Tensor:
            return torch.cumsum(torch.histc(which.float(), bins=bins, min=0, max=bins - 1), 0, dtype=torch.int32)

        ends = ends_of(counted(sorted_ids, torch.sort(other.reshape(-1))[0]))
        both = grouped_mm(rows, gate_up.transpose(1, 2), ends) + gate_bias[bias(sorted_ids, flat)]
        g, u = both.chunk(2, -1)
        rows = grouped_mm(gate(g, u), down.transpose(1, 2), second(ends, ends_of(torch.sort(other.reshape(-1))[0])))
        rows = rows * weights.reshape(-1)[weighed(p, inverse)].unsqueeze(-1)
        return total(rows[back(inverse, p)].view(x.shape[0], K, H))

    return function


def arguments(t: int = T, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)

    def normal(*sizes: int, by: float = 0.3) -> Tensor:
        return (torch.randn(sizes, generator=g) * by).to(dtype)

    ids, other = (torch.rand(t, E, generator=g).argsort(-1)[:, :K].contiguous() for _ in range(2))
    return normal(t, H, by=1.0), ids, normal(t, K, by=1.0).abs(), normal(E, 2 * I, H), normal(E, H, I), normal(E, 2 * I), other


def rewritten(function: Function, args: tuple[Tensor, ...]) -> tuple[GraphModule, list[str], int]:
    """The canonical graph after the recogniser, the reasons against sites, and how many ops there are."""
    gm = make_fx(function, pre_dispatch=True, tracing_mode="fake")(*args)
    tidy(gm)
    outcome = apply_rules(gm, [RULE])
    gm.recompile()
    return gm, [e.reason for e in outcome.missed], len(gm.graph.find_nodes(op="call_function", target=moe.target))


def test_the_mixture_itself_is_one() -> None:
    gm, missed, found = rewritten(mixture(), arguments())
    assert (found, missed) == (1, [])
    torch.testing.assert_close(gm(*arguments()), mixture()(*arguments()), atol=1e-5, rtol=0)


# --- what looks like one ------------------------------------------------------------------------------

WRONG: dict[str, tuple[Function, str]] = {
    "another permutation": (mixture(order=lambda p: p.flip(0)), "not those of the tokens whose experts were sorted"),
    "another K": (mixture(tokens=lambda p, k: p // 4), "a view as 4 for each token"),
    "a remainder": (mixture(tokens=lambda p, k: p % T), "not those of the tokens whose experts were sorted"),
    "tokens of the inverse": (mixture(tokens=lambda p, k: torch.argsort(p) // k), "not those of the tokens whose experts were sorted"),
    "offsets of other ids": (mixture(counted=lambda ids, other: other), "not sorted by the places that the sort of their experts gives"),
    "one bin too many": (mixture(bins=E + 1), "the histogram counts 5 experts"),
    "unsorted ids counted": (mixture(counted=lambda ids, other: ids.flip(0)), "the histogram is not one of sorted ids"),
    "sorted downwards": (mixture(descending=True), "not sorted upwards"),
    "weights of the inverse": (mixture(weighed=lambda p, inverse: inverse), "weights are not sorted as the rows are"),
    "put back by the permutation": (mixture(back=lambda inverse, p: p), "not the inverse of the sort"),
    "biases in the order before": (mixture(bias=lambda sorted_ids, flat: flat), "not the bias of each row's own expert"),
    "other experts for the second product": (mixture(second=lambda ends, other: other), "not sorted by the places that the sort of their experts gives"),
    "halves swapped": (mixture(gate=lambda g, u: glu(u, g, "silu")), "neither the first half"),
    "one half twice": (mixture(gate=lambda g, u: glu(g, g, "silu")), "neither the first half"),
    "an unknown activation": (mixture(gate=lambda g, u: torch.sin(g) * u), "is no activation that is known"),
    "a mean": (mixture(total=lambda y: y.mean(1)), "a sum over its choices, and there is mean"),
    "a sum over the width": (mixture(total=lambda y: y.sum(2)), "a sum over its choices"),
}


@pytest.mark.parametrize("what", WRONG)
def test_it_is_left_alone_with_a_reason(what: str) -> None:
    function, reason = WRONG[what]
    args = arguments(8)
    before = make_fx(function, pre_dispatch=True)(*args) if "K" not in what else None
    gm, missed, found = rewritten(function, args) if before is not None else _with_choices(4)
    assert found == 0
    assert any(reason in m for m in missed), missed
    if before is not None:
        assert torch.equal(torch.nan_to_num(gm(*args)), torch.nan_to_num(before(*args)))


def _with_choices(k: int) -> tuple[GraphModule, list[str], int]:
    """The graph of a mixture in which rows belong to `perm // k`."""
    gm = make_fx(mixture(), pre_dispatch=True, tracing_mode="fake")(*arguments())
    tidy(gm)
    (division,) = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.floor_divide.default)
    division.args = (division.args[0], k)
    outcome = apply_rules(gm, [RULE])
    return gm, [e.reason for e in outcome.missed], len(gm.graph.find_nodes(op="call_function", target=moe.target))


def _mutated(change: Callable[[GraphModule], None]) -> tuple[list[str], int]:
    gm = make_fx(mixture(), pre_dispatch=True, tracing_mode="fake")(*arguments())
    tidy(gm)
    change(gm)
    outcome = apply_rules(gm, [RULE])
    return [e.reason for e in outcome.missed], len(gm.graph.find_nodes(op="call_function", target=moe.target))


def _node(gm: GraphModule, target: Any, which: int = 0) -> Any:
    return gm.graph.find_nodes(op="call_function", target=target)[which]


def _set(target: Any, at: int, value: Any, which: int = 0) -> Callable[[GraphModule], None]:
    """One argument of one call becomes another."""

    def change(gm: GraphModule) -> None:
        node = _node(gm, target, which)
        node.args = (*node.args[:at], value, *node.args[at + 1 :])

    return change


aten = torch.ops.aten
MUTANTS: dict[str, tuple[Callable[[GraphModule], None], str]] = {
    "counts from one": (_set(aten.histc.default, 2, 1), "the histogram counts 4 experts from 1 to 3"),
    "counts one less": (_set(aten.histc.default, 3, E - 2), "the histogram counts 4 experts from 0 to 2"),
    "added into the inverse": (lambda gm: _set(aten.index_put.default, 3, True)(_longer(gm, aten.index_put.default, 4)), "not the inverse of the sort"),
    "another half as the gate": (lambda gm: _swap_halves(gm), "neither the first half"),
}


def _longer(gm: GraphModule, target: Any, count: int) -> GraphModule:
    node = _node(gm, target)
    node.args = (*node.args, *[False] * (count - len(node.args)))
    return gm


def _swap_halves(gm: GraphModule) -> None:
    node = _node(gm, glu.target)
    node.args = (node.args[1], node.args[0], *node.args[2:])


@pytest.mark.parametrize("what", MUTANTS)
def test_a_mutated_graph_is_left_alone(what: str) -> None:
    change, reason = MUTANTS[what]
    missed, found = _mutated(change)
    assert found == 0 and any(reason in m for m in missed), (found, missed)


def test_an_extra_user_is_named() -> None:
    def function(*args: Tensor) -> Any:
        kept: list[Tensor] = []
        return mixture(gate=lambda g, u: kept.append(glu(g, u, "silu")) or kept[0])(*args), kept[0]

    _, missed, found = rewritten(function, arguments())
    assert found == 0 and any("is needed by output as well" in m for m in missed)


def test_every_refusal_of_the_dense_form() -> None:
    """llama4's, with scores that are not zero where an expert was not chosen, of another fill, of another activation."""

    def dense(fill: float, squash: Callable[[Tensor], Tensor], offset: float = 0.0, dim: int = 0) -> Function:
        def function(x: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
            values, ids = torch.topk(scores, K, dim=1)
            chosen = squash(torch.full_like(scores, fill).scatter(1, ids, values))
            rows = x.repeat(E, 1) * chosen.transpose(0, 1).reshape(-1, 1)
            gate, up = torch.bmm(rows.view(E, -1, H), gate_up).chunk(2, -1)
            return torch.bmm(glu(gate, up, "silu", up_offset=offset), down).sum(dim)

        return function

    g = torch.Generator().manual_seed(0)
    args = tuple(torch.randn(s, generator=g) for s in ((T, H), (T, E), (E, H, 2 * I), (E, I, H)))
    gm, missed, found = rewritten(dense(float("-inf"), torch.sigmoid, offset=1.0), args)
    assert (found, missed) == (1, [])
    torch.testing.assert_close(gm(*args), dense(float("-inf"), torch.sigmoid, offset=1.0)(*args), atol=2e-4, rtol=1e-5)
    for function, reason in (
        (dense(-10.0, torch.sigmoid), "experts that it did not choose"),
        (dense(0.0, torch.sigmoid), "experts that it did not choose"),
        (dense(float("-inf"), lambda s: s.softmax(0)), "experts that it did not choose"),
        (dense(float("-inf"), torch.cos), "not scattered to the experts that were chosen"),
        (dense(float("-inf"), torch.sigmoid, dim=1), "not added up over all of them"),
    ):
        _, missed, found = rewritten(function, args)
        assert found == 0 and any(reason in m for m in missed), (reason, missed)


def test_other_products_are_no_near_misses() -> None:
    """Attention's, and one grouped product alone."""

    def attention(q: Tensor, k: Tensor) -> Tensor:
        return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), k)

    def one(x: Tensor, w: Tensor, ends: Tensor) -> Tensor:
        return grouped_mm(x, w, ends).relu()

    assert rewritten(attention, (torch.randn(2, 3, 8), torch.randn(2, 5, 8)))[1:] == ([], 0)
    assert rewritten(one, (torch.randn(6, 8), torch.randn(3, 8, 4), torch.tensor([1, 3, 6], dtype=torch.int32)))[1:] == ([], 0)


# --- the report, the proof ----------------------------------------------------------------------------


class Block(nn.Module):
    """A router and its experts, as Mixtral has them, and a shared expert."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)

        def weight(*sizes: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(sizes, generator=g) * 0.3)

        self.router, self.gate_up, self.down = weight(E, H), weight(E, 2 * I, H), weight(E, H, I)
        self.gate, self.up, self.out = weight(I, H), weight(I, H), weight(H, I)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(-1, H)
        weights, ids = torch.topk(F.softmax(F.linear(flat, self.router), dim=-1), K, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True) * 2.5
        shared = F.linear(F.silu(F.linear(flat, self.gate)) * F.linear(flat, self.up), self.out)
        return (self.experts(flat, ids, weights) + shared).view(x.shape)

    def experts(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        rows = x.repeat_interleave(K, dim=0)
        flat = ids.reshape(-1)
        gate, up = torch.bmm(self.gate_up[flat], rows.unsqueeze(-1)).squeeze(-1).chunk(2, dim=-1)
        rows = torch.bmm(self.down[flat], (F.silu(gate) * up).unsqueeze(-1)).squeeze(-1)
        return (rows * weights.reshape(-1, 1)).view(x.shape[0], K, H).sum(dim=1)


def test_the_note_says_what_the_router_does() -> None:
    report = hfgraph.explain(Block(), torch.randn(2, 5, H))
    assert report.counts["moe"] == 1 and report.counts["glu"] == 1
    (site,) = [s for s in report.sites if s.rule == "moe"]
    assert site.note == "4 experts, top-2, softmax before top-k, renormalised, scaled by 2.5, shared expert"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_verify_and_sabotage(dtype: torch.dtype) -> None:
    verdict = hfgraph.verify(Block().to(dtype), torch.randn(2, 5, H).to(dtype), sabotage=True)
    assert verdict.ok and verdict.sabotage["moe"]


def test_gradients_reach_every_weight() -> None:
    block, x = Block(), torch.randn(2, 5, H)
    compiled = torch.compile(block, backend="hfgraph", options={"inductor": False, "strict": True})
    names, weights = zip(*block.named_parameters(), strict=True)
    wanted, got = (torch.autograd.grad(f(x).square().sum(), weights) for f in (block, compiled))
    for name, w, g in zip(names, wanted, got, strict=True):
        torch.testing.assert_close(g, w, atol=1e-4, rtol=1e-4, msg=name)


# --- a property ---------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    t=st.integers(1, 9), k=st.integers(1, 4), e=st.integers(1, 6), h=st.integers(1, 20), i=st.integers(1, 20), seed=st.integers(0, 2**16),
    form=st.sampled_from(["sorted", "gathered"]), gated=st.booleans(), turned=st.booleans(),
)  # fmt: skip
def test_the_graph_that_was_recognised_equals_the_original(t: int, k: int, e: int, h: int, i: int, seed: int, form: str, gated: bool, turned: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, e, (t, k), generator=g)
    shapes = [(t, h), (t, k), (e, h, i * (1 + gated)) if turned else (e, i * (1 + gated), h), (e, i, h) if turned else (e, h, i)]
    x, weights, up, down = (torch.randn(s, generator=g) for s in shapes)

    def activated(rows: Tensor) -> Tensor:
        return glu(*rows.chunk(2, -1), "gelu") if gated else torch.relu(rows).pow(2)

    def function(x: Tensor, ids: Tensor, weights: Tensor, up: Tensor, down: Tensor) -> Tensor:
        flat = ids.reshape(-1)
        if form == "gathered":
            rows = x.repeat_interleave(k, dim=0)
            for m, after in ((up, activated), (down, lambda r: r)):
                picked = m[flat]
                rows = after(torch.bmm(rows.unsqueeze(1), picked).squeeze(1) if turned else torch.bmm(picked, rows.unsqueeze(-1)).squeeze(-1))
            return (rows * weights.reshape(-1).unsqueeze(-1)).view(t, k, h).sum(1)
        sorted_ids, p = torch.sort(flat)
        ends = torch.cumsum(torch.histc(sorted_ids.float(), bins=e, min=0, max=e - 1), 0, dtype=torch.int32)
        rows = activated(grouped_mm(x[p // k], up if turned else up.transpose(1, 2), ends))
        rows = grouped_mm(rows, down if turned else down.transpose(1, 2), ends) * weights.reshape(-1)[p].unsqueeze(-1)
        inverse = torch.empty_like(p).index_put((p,), torch.arange(t * k))
        return rows[inverse].view(t, k, h).sum(1)

    args = (x, ids, weights, up, down)
    gm, missed, found = rewritten(function, args)
    want, got = function(*args), gm(*args)
    assert found == 1 or missed, "a mixture is neither found nor is there a reason"
    assert found == 1 or 1 in (t * k, h, i, k), missed
    torch.testing.assert_close(got, want, atol=1e-4 * max(1.0, want.abs().max().item()), rtol=0)


# --- ids that are no expert's number ------------------------------------------------------------------


def gathered(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Each choice with a copy of its expert's matrices; Python counts negative ids from the last."""
    flat, rows = ids.reshape(-1), x.repeat_interleave(K, 0)
    gate, up = torch.bmm(gate_up[flat], rows.unsqueeze(-1)).squeeze(-1).chunk(2, -1)
    y = torch.bmm(down[flat], (F.silu(gate) * up).unsqueeze(-1)).squeeze(-1) * weights.reshape(-1, 1)
    return y.view(T, K, H).sum(1)


def in_order(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Rows sorted by expert; those behind the last expert's are nobody's."""
    sorted_ids, order = torch.sort(ids.reshape(-1))
    ends = torch.cumsum(torch.histc(sorted_ids.float(), bins=E, min=0, max=E - 1), 0, dtype=torch.int32)
    gate, up = grouped_mm(x[order // K], gate_up.transpose(1, 2), ends).chunk(2, -1)
    y = grouped_mm(F.silu(gate) * up, down.transpose(1, 2), ends) * weights.reshape(-1)[order].unsqueeze(-1)
    return y[torch.empty_like(order).index_put((order,), torch.arange(T * K))].view(T, K, H).sum(1)


@pytest.mark.parametrize("kernel", ("cpp", "reference"))
@pytest.mark.parametrize(("function", "shift"), ((gathered, -E), (gathered, -1), (in_order, 0), (in_order, 1)))
@torch.no_grad()
def test_ids_mean_what_they_mean_to_the_model(function: Function, shift: int, kernel: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, gate_up, down = (torch.randn(s, generator=generator) * 0.3 for s in ((T, H), (E, 2 * I, H), (E, H, I)))
    ids, weights = torch.randint(0, E, (T, K), generator=generator) + shift, torch.rand(T, K, generator=generator)
    compiled = torch.compile(function, backend="hfgraph", options={"strict": True, "inductor": False, "kernels": {"moe": kernel}})
    torch.testing.assert_close(compiled(x, ids, weights, gate_up, down), function(x, ids, weights, gate_up, down), atol=1e-5, rtol=0)
    assert hfgraph.last_report().counts["moe"] == 1
