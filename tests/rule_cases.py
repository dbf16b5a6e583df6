"""Cases for every rule, derived from what the rule says about itself: arguments, float64 judges, mutants."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from hfgraph.graph.canonical import tidy
from hfgraph.graph.inputs import Choice, Dtype, Inputs
from hfgraph.graph.rewrite import Outcome, apply_rules
from hfgraph.graph.rule import Rule
from hfgraph.graph.values import evaluated

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}

# Relative to the largest value of the judge: a few roundings of the dtype a result is kept in.
TOLERANCE = {
    torch.float64: 1e-12,  # eight bits above its epsilon, for sums over the row
    torch.float32: 1e-5,  # epsilon 1.2e-7: sums over 63 values, then a handful of roundings
    torch.float16: 4e-3,  # epsilon 9.8e-4: four roundings
    torch.bfloat16: 3.2e-2,  # epsilon 7.8e-3: four roundings
}


@dataclass(frozen=True, eq=False)
class Case:
    """Arguments of a rule by name, and a text that says which."""

    name: str
    arguments: Mapping[str, Any]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {n: a for n, a in self.arguments.items() if isinstance(a, Tensor)}

    def function(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """`body` as a function of the tensors alone, everything else filled in."""
        names = list(self.tensors)
        rest = {n: a for n, a in self.arguments.items() if n not in names}
        return lambda *given: body(**dict(zip(names, given, strict=True)), **rest)


def settings(inputs: Inputs, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Values for the dtypes: each required one in turn every float dtype, the optional ones all left out, all `dtype`, all wide.

    Then each further word of a choice, once, without optional dtypes.
    """
    optional = [n for n, a in inputs.items() if isinstance(a, Dtype) and a.optional]
    required = [n for n, a in inputs.items() if isinstance(a, Dtype) and not a.optional]
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    options = [None, dtype, wide] if optional else [None]
    choices = list(product((torch.float32, torch.bfloat16, torch.float16, torch.float64), repeat=len(required)))
    found = [{**dict(zip(required, c, strict=True)), **dict.fromkeys(optional, o)} for c in choices for o in dict.fromkeys(options)]
    words = {n: a.options[1:] for n, a in inputs.items() if isinstance(a, Choice)}
    return found + [{**dict.fromkeys(optional), n: w} for n, further in words.items() for w in further]


def cases(inputs: Inputs, dtype: torch.dtype, *, scales: tuple[float, ...] | None = None, shape: Mapping[str, int] | None = None) -> Iterator[Case]:
    """Every scale, every setting of dtypes, each optional tensor there and not there."""
    absences = absent_sets([n for n, d in inputs.tensors.items() if d.optional])
    for scale in scales or inputs.scales:
        for i, setting in enumerate(settings(inputs, dtype)):
            for absent in absences:
                made = inputs.make(dtype, scale=scale, seed=i, absent=absent, **({"sizes": shape} if shape else {}))
                yield Case(f"scale {scale:g}, setting {i}, absent {', '.join(absent) or 'none'}", {**made, **setting})


def absent_sets(optional: list[str]) -> list[tuple[str, ...]]:
    """Which optional tensors to leave out: every choice of a few; of many none, all, all but one and one alone."""
    if len(optional) <= 3:
        return [a for count in range(len(optional) + 1) for a in combinations(optional, count)]
    others = [tuple(n for n in optional if n != one) for one in optional]
    return [(), tuple(optional), *((n,) for n in optional), *others]


def graph_of(function: Callable[..., Any], tensors: Mapping[str, Tensor], *, symbolic: bool = False) -> GraphModule:
    """A canonical graph, as the backend would have it before any rule."""
    gm = make_fx(function, pre_dispatch=True, tracing_mode="symbolic" if symbolic else "fake")(*tensors.values())
    tidy(gm)
    gm.recompile()
    return gm


def rewritten(rule: Rule, case: Case, *, symbolic: bool = False, body: Callable[..., Any] | None = None) -> tuple[GraphModule, Outcome]:
    """The rule's own pattern (or `body`) on a case, with the rule applied."""
    gm = graph_of(case.function(body or rule.pattern), case.tensors, symbolic=symbolic)
    outcome = apply_rules(gm, [rule])
    gm.graph.lint()
    gm.recompile()
    return gm, outcome


def judge(body: Callable[..., Any], case: Case) -> list[Tensor]:
    """`body` in float64: tensors and every dtype of the case widened."""
    widened = {
        n: a.double() if isinstance(a, Tensor) and a.is_floating_point() else torch.float64 if isinstance(a, torch.dtype) else a
        for n, a in case.arguments.items()
    }
    return [t for t in tree_leaves(body(**widened)) if isinstance(t, Tensor)]


def error(got: Any, wanted: list[Tensor]) -> float:
    """Largest difference relative to the largest value, over all results."""
    worst = 0.0
    for g, w in zip([t for t in tree_leaves(got) if isinstance(t, Tensor)], wanted, strict=True):
        worst = max(worst, ((g.double() - w).abs().max() / w.abs().max().clamp_min(1e-300)).item())
    return worst


def coarsest(case: Case, results: Any) -> torch.dtype:
    """The coarsest float dtype of a case: arguments, dtypes in them, results."""
    found = [a for a in case.arguments.values() if isinstance(a, torch.dtype)]
    found += [t.dtype for t in (*case.tensors.values(), *tree_leaves(results)) if isinstance(t, Tensor) and t.is_floating_point()]
    return max(found, key=lambda d: torch.finfo(d).eps)


def commuted(gm: GraphModule) -> int:
    """Swap the operands of every sum and product of two tensors, in place; returns how many."""
    swapped = 0
    for node in gm.graph.nodes:
        if swapped and node.op == "call_function":
            node.meta["val"] = evaluated(node)  # strides follow the first operand
        if node.target in (torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor) and all(isinstance(a, Node) for a in node.args[:2]) and not node.kwargs:
            node.args = (node.args[1], node.args[0])
            node.meta["val"] = evaluated(node)
            swapped += 1
    return swapped


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)
