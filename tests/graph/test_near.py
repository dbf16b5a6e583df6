"""Near misses: where they begin to differ, which nodes fitted, one per place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captured import captured
from torch import Tensor
from torch.fx import GraphModule

from hfgraph.graph.canonical import tidy
from hfgraph.graph.match import label
from hfgraph.graph.rewrite import Event, apply_rules
from hfgraph.kernels import all_ops
from hfgraph.rewrites import rules

all_ops()
X = torch.ones(2, 3, 8)
W = torch.ones(8)


def missed(function: Callable[..., Any], *args: Any) -> tuple[GraphModule, list[Event]]:
    gm = captured(function, *args, change=tidy).graphs[0]
    return gm, apply_rules(gm, rules("recognise")).missed


def norm(x: Tensor, power: int = 2, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.pow(power).mean(-1, keepdim=True) + eps)


def quotient(x: Tensor) -> Tensor:
    return x / (x.pow(3).mean(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize(
    ("function", "rule", "differs", "fitted"),
    [
        (lambda x: norm(x, 3), "rms_norm", "pow", {"pow", "mean", "add", "rsqrt"}),
        (lambda x: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6), "rms_norm", "sum", {"add", "rsqrt", "mul"}),
        (lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6), "rms_norm", "mean", {"mean", "add", "rsqrt", "mul"}),
        (quotient, "rms_norm_divide", "pow", {"pow", "mean", "add", "sqrt"}),
    ],
    ids=["power", "sum", "dim", "quotient"],
)  # fmt: skip
def test_the_first_difference_is_a_node(function: Callable[..., Any], rule: str, differs: str, fitted: set[str]) -> None:
    gm, found = missed(function, X)
    names = {n.name: label(n) for n in gm.graph.nodes}
    assert [(e.rule, names[e.node]) for e in found] == [(rule, differs)]
    assert {names[n] for n in found[0].fitted} >= fitted - {differs}


def test_beside_norms_that_match_the_odd_one_is_still_told() -> None:
    """The rarest operator of the whole graph need not be the one that differs."""
    _, found = missed(lambda x: norm(norm(norm(norm(x), 3))), X)
    assert [e.reason.partition("then ")[2] for e in found] == ["expected 2, found 3"]


def test_one_place_has_one_reason() -> None:
    """Patterns over several dtypes, rules that share operators, several anchors: the nearest speaks."""
    _, found = missed(lambda x: norm(x.float(), 3).to(torch.bfloat16), X.bfloat16())
    assert len(found) == 1


def test_two_places_have_two() -> None:
    _, found = missed(lambda x: norm(norm(x, 3).sin(), 4), X)
    assert len(found) == 2 and not set(found[0].fitted) & set(found[1].fitted)


@pytest.mark.parametrize(
    "function", [lambda x: x.pow(2) + 1, lambda x: x * x.mean(), lambda x: (x + 1) * 2, lambda x: x.softmax(-1)], ids=["pow", "mean", "add", "softmax"]
)
def test_what_only_shares_an_operator_is_not_near(function: Callable[..., Any]) -> None:
    assert missed(function, X)[1] == []


def test_a_value_that_is_needed_elsewhere_is_where_it_differs() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + 1e-6), mean

    gm, found = missed(function, X)
    assert [label(n) for n in gm.graph.nodes if n.name == found[0].node] == ["mean"]
    assert "mean has 2 users" in found[0].reason


# --- what an application says of itself ------------------------------------------------------------------


def test_an_application_counts_what_it_took_and_gave() -> None:
    gm = captured(lambda x, w: norm(x) * w, X, W, change=tidy).graphs[0]
    applied = apply_rules(gm, rules("recognise")).applied
    core, weight = applied
    assert (core.rule, core.removed.nodes, core.added.nodes) == ("rms_norm", 5, 1)
    assert (weight.rule, weight.removed.nodes, weight.added.nodes) == ("rms_norm_weight", 2, 1)
    size = X.numel() * 4
    # pow, mean, add, rsqrt, mul: each reads and writes on its own.
    assert core.removed.bytes == 2 * size + (size + 6 * 4) + 2 * 6 * 4 + 2 * 6 * 4 + (2 * size + 6 * 4)
    assert core.added.bytes == 2 * size and core.added.flops == 3 * X.numel()
    assert weight.removed == type(core.added)(2, core.added.flops + X.numel(), core.added.bytes + 2 * size + 8 * 4)


def test_a_new_node_names_what_it_stands_for() -> None:
    from hfgraph.graph.replacing import FROM, RULES

    gm = captured(lambda x, w: norm(x) * w + 1, X, W, change=tidy).graphs[0]
    before = {n.name: label(n) for n in gm.graph.nodes}
    apply_rules(gm, rules("recognise"))
    (made,) = [n for n in gm.graph.nodes if RULES in n.meta]
    assert sorted(before[name] for name in made.meta[FROM]) == ["add", "mean", "mul", "mul", "pow", "rsqrt"]
    assert made.meta[RULES] == ("rms_norm", "rms_norm_weight")
