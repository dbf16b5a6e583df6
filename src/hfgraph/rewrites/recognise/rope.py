"""Queries and keys turned by the same tables for the same attention: two rotations become one op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from hfgraph.graph.recogniser import Found, Recogniser, Refusal, View
from hfgraph.graph.unify import label
from hfgraph.graph.values import val, written_nodes
from hfgraph.kernels.rope import rope
from hfgraph.kernels.rotate import rotate
from hfgraph.rewrites.linear import LINEAR
from hfgraph.rewrites.spellings import PAIRS

aten = torch.ops.aten
# Where queries meet keys: the product that attention begins with, by the names of operators, hfgraph's own among them.
_PRODUCTS = frozenset({"scaled_dot_product_attention", "attention", "matmul", "bmm", "baddbmm", "einsum", "flex_attention"})
# What rotated values may go through on their way there: views and copies, norms, scales, cache writes.
_CARRIES = frozenset(
    {"mul", "div", "rms_norm", "repeat_interleave", "slice_scatter", "select_scatter", "index_put", "index_put_", "index_copy", "index_copy_", "copy_",
     "copy", "new_empty", "where", "repeat", "scatter"}
)  # fmt: skip
_MOST = 48
_SHARED = ("cos", "sin", "half", "interleaved", "interleaved_out", "reverse", "complex_product", "compute_dtype", "out_dtype")


def recognise(node: Node, view: View) -> Found | Refusal | None:
    given = rotate.bind(node.args, node.kwargs)
    others = [n for n in view.graph.find_nodes(op="call_function", target=rotate.target) if n is not node and n.users]
    alike = [n for n in others if _alike(given, rotate.bind(n.args, n.kwargs), view)]
    partners = {n: pair for n in alike if (pair := _pair(node, n, view)) is not None}
    if len(partners) != 1:
        return None
    q, k = next(iter(partners.values()))
    q_given, k_given = (rotate.bind(n.args, n.kwargs) for n in (q, k))
    shared = {name: q_given[name] for name in _SHARED if q_given[name]}
    tails = {name: 1 for name, of in (("q_tail", q_given), ("k_tail", k_given)) if of["tail"]}
    return Found((q, k), rope, {"q": q_given["x"], "k": k_given["x"], **shared, **tails}, (q, k))


def _alike(a: dict[str, Any], b: dict[str, Any], view: View) -> bool:
    return all(view.same(a[name], b[name]) for name in _SHARED)


def _pair(a: Node, b: Node, view: View) -> tuple[Node, Node] | None:
    """The two as queries and keys, if they meet in an attention product that comes after both; where neither reaches one in
    this graph, if they are projections of one value."""
    reached, other = _products(a, view), _products(b, view)
    if reached or other:
        common = [p for p in reached if p in other and reached[p] != other[p]]
        if not common or min((*reached, *other)) < max(a, b):
            return None
        return (a, b) if reached[common[0]] < other[common[0]] else (b, a)
    source, its = _source(a), _source(b)
    if source is None or its is None or not view.same(source, its):
        return None
    return (a, b) if a < b else (b, a)


def _products(node: Node, view: View) -> dict[Node, int]:
    """The attention products that a value reaches by being moved, and as which of their operands."""
    found: dict[Node, int] = {}
    seen, stack = {node}, [node]
    while stack and len(seen) < _MOST:
        current = stack.pop()
        for user in current.users:
            name = label(user) if user.op == "call_function" else ""
            if name in _PRODUCTS:
                given = user.args[1] if name == "einsum" else [*user.args, *user.kwargs.values()]
                operands = [a for a in given if not isinstance(a, list | tuple)]  # type: ignore[union-attr]
                found[user] = next((i for i, a in enumerate(operands) if a is current), len(operands))
            elif user not in seen and (name in _CARRIES or user.target in LINEAR):
                later = [m for w in written_nodes(user) for m in view.aliases.members(w) if m > user and m not in seen]
                seen.update((user, *later))
                stack += [user, *later]
    return found


def _source(node: Node) -> Node | None:
    """What the projection behind a rotation projects."""
    current: Any = rotate.bind(node.args, node.kwargs)["x"]
    for _ in range(_MOST):
        name = label(current) if current.op == "call_function" else ""
        if name in ("linear", "addmm", "mm"):
            return next(a for a in current.args[1 if name == "addmm" else 0 :] if isinstance(a, Node))
        if current.target not in LINEAR and name not in ("rms_norm", "layer_norm"):
            return None
        current = next((i for i in current.all_input_nodes if isinstance(val(i), Tensor | list | tuple)), None)
        if current is None:
            return None
    return None


RULE = Recogniser(frozenset({rotate.target}), recognise, rope, PAIRS)
