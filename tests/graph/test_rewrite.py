"""The rewriter: replacements with sizes of their own, what is known of a node, placement, sabotage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captured import captured, holds, ops
from marked import marked

from hfgraph.graph import rewrite
from hfgraph.graph.canonical import tidy
from hfgraph.graph.inputs import Inputs, Scalar
from hfgraph.graph.replacing import REPLACES, RULES
from hfgraph.graph.rewrite import Outcome, apply_rules
from hfgraph.graph.rule import Rule

X = torch.linspace(-3, 3, 2 * 3 * 4 * 8).reshape(2, 3, 4, 8)


def _rotate(x):
    return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1)


def _rolled(x):
    """The same function with sizes of its own: roll by half, negate the first half."""
    half = x.shape[-1] // 2
    signs = torch.cat((-torch.ones_like(x[..., half:]), torch.ones_like(x[..., :half])), -1)
    return torch.roll(x, half, -1) * signs


def _flat(x):
    """Sizes, products of sizes and all dims but the last of any rank."""
    return torch.cat((-x.narrow(-1, x.shape[-1] // 2, x.shape[-1] - x.shape[-1] // 2), x.narrow(-1, 0, x.shape[-1] // 2)), -1) * 1.0


REPLACEMENTS = {"roll": _rolled, "narrow": _flat}


def applied(rule: Rule, function: Any, *args: Any, dynamic: bool | None = None) -> int:
    seen: list[Outcome] = []

    def change(gm: Any) -> None:
        tidy(gm)
        seen.append(apply_rules(gm, [rule]))

    holds(function, *args, change=change, dynamic=dynamic)
    return len(seen[0].applied)


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", REPLACEMENTS)
def test_sizes_in_a_replacement_fit_every_rank(name: str, rank: int, dynamic: bool | None) -> None:
    """A size that the replacement reads is the site's, whatever the rank that the rule was traced with."""
    rule = Rule(_rotate, REPLACEMENTS[name], inputs=Inputs(x="... D"), name="rotate")
    x = X[None]
    while x.ndim > rank:
        x = x[0]
    assert applied(rule, lambda x: _rotate(x) + 1, x, dynamic=dynamic) == 1


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
def test_named_sizes_in_a_replacement(dynamic: bool | None) -> None:
    def pattern(k):
        b, h, t, d = k.shape
        return k[:, :, None, :, :].expand(b, h, 2, t, d).reshape(b, h * 2, t, d)

    rule = Rule(pattern, lambda k: torch.repeat_interleave(k, 2, dim=1), inputs=Inputs(k="B H T D"), name="repeat_kv")
    assert applied(rule, lambda k: pattern(k) * 2, X, dynamic=dynamic) == 1


def test_a_step_on_the_way_to_an_op_is_no_near_miss_but_a_shared_operator_is_no_step() -> None:
    """A replacement that happens to use `add`, as its pattern does, still reports its near misses."""
    rule = Rule(
        lambda x, eps: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps),
        lambda x, eps: x / torch.sqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True) ** 2 / x.shape[-1] + eps),
        inputs=Inputs(x="... D", eps=Scalar(1e-6)),
        when=lambda x, eps: False,
        name="norm",
    )
    gm = captured(lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5), X, change=tidy).graph
    assert [e.reason for e in apply_rules(gm, [rule]).missed] == ["norm: 5 of 5 nodes matched, then the rule's condition does not hold here"]


def test_metadata() -> None:
    rule = marked(lambda x: x.cos().sin(), Inputs(x="... D"), name="waves")

    class Inner(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cos().sin()

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([Inner(), Inner()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers[1](self.layers[0](x) + 1)

    gm = captured(Outer(), X, change=tidy).graph
    found = apply_rules(gm, [rule]).applied
    assert [e.module for e in found] == ["layers.0", "layers.1"]
    assert all(e.source.startswith("test_rewrite.py:") for e in found)
    made = [n for n in gm.graph.nodes if RULES in n.meta]
    assert [n.meta[RULES] for n in made] == [("waves",), ("waves",)]
    assert all(n.meta["val"].shape == X.shape and n.meta[REPLACES] and n.meta["nn_module_stack"] and n.meta["stack_trace"] for n in made)


def test_sabotage_changes_the_result() -> None:
    rule = marked(lambda x: x.cos().sin(), Inputs(x="... D"), name="waves")
    for sabotage, equal in ((None, True), ("another", True), ("waves", False)):
        gm = captured(lambda x: x.cos().sin() + 1, X, change=lambda g, s=sabotage: (tidy(g), apply_rules(g, [rule], sabotage=s))).graph
        assert torch.equal(gm(X)[0], X.cos().sin() + 1) == equal


def test_dead_nodes_are_gone() -> None:
    rule = marked(lambda x: x.cos().sin(), Inputs(x="... D"), name="waves")
    gm = captured(lambda x: x.cos().sin() + 1, X, change=lambda g: (tidy(g), apply_rules(g, [rule]))).graph
    assert len(ops(gm)) == 2 and not {"cos", "sin"} & set(ops(gm))


def test_alike_sites_are_judged_once_in_each_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A symbol of the same name may mean another size in another graph: no verdict outlives the graph that it is about."""
    judged: list[str] = []
    compare = rewrite._compare_results

    def counted(match: Any, replacement: Any) -> str | None:
        judged.append(str(match.outputs[0].meta["val"].shape))
        return compare(match, replacement)

    monkeypatch.setattr(rewrite, "_compare_results", counted)
    rule = Rule(lambda x: x.cos(), lambda x: (x + 1).sin() * 0.5, inputs=Inputs(x="... D"), name="cos")
    for _ in range(2):
        gm = captured(lambda x: x.cos() + (x * 2).cos() + x.t().cos().sum(), X[0, 0], change=tidy, dynamic=True).graph
        assert len(apply_rules(gm, [rule]).applied) == 3
    assert len(judged) == 4 and judged[:2] == judged[2:], "two layouts in each graph, and the same symbols in both"
