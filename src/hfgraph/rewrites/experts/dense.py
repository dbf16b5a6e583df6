"""A mixture that runs every expert on every token, each token multiplied by a weight that is zero for the experts it did not choose."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from hfgraph.graph.evaluate import CannotEvaluate, evaluate
from hfgraph.graph.recogniser import Found, View
from hfgraph.graph.values import arguments, same_size, val
from hfgraph.kernels.glu import ACTIVATIONS
from hfgraph.kernels.moe import moe
from hfgraph.rewrites.experts.reading import Unlike, read_activation, unturned, upright, user_of
from hfgraph.rewrites.experts.router import described, shared_expert

aten = torch.ops.aten
_MOST = 6


def read_dense(node: Node, view: View) -> Found | None:
    """The mixture whose second product is the `bmm` `node`; None where it is another product. Raises Unlike."""
    rows, right = node.args
    if not isinstance(rows, Node) or not isinstance(right, Node) or unturned(right)[0].op not in ("placeholder", "get_attr"):
        return None
    down, down_turned = unturned(right)
    try:
        activation = read_activation(rows, val(right).shape[1])
    except Unlike:
        return None
    first = activation.source
    if first.target is not aten.bmm.default:
        return None
    gate_up, up_turned = unturned(first.args[1])  # type: ignore[arg-type]
    experts, width = val(right).shape[0], val(right).shape[2]
    x, scores, into = _spread(first.args[0], experts)  # type: ignore[arg-type]
    ids, choices, fill = _chosen(scores, experts)
    if _not_zero(scores, fill):
        raise Unlike("a token takes part in experts that it did not choose", scores)
    if not _keeps_zero(activation.named):
        raise Unlike("what is zero before the activation is not zero after it", rows)
    out, tail = _added(node, experts, width)
    weights = view.call(aten.gather.default, scores, 1, ids, before=out)
    args = {
        "x": x, "expert_ids": ids, "expert_weights": weights, "gate_up": upright(gate_up, up_turned, view, out), "down": upright(down, down_turned, view, out),
        **activation.named, "weights_first": 1,
    }  # fmt: skip
    own = (*into, first, *activation.nodes, node, *tail)
    words = f"{described(ids, weights, experts, choices)}, weights before the experts{shared_expert(out, x)}"
    return Found((out,), moe, args, own, tuple(n for n in own if n is not out), note=words)


def _spread(rows: Node, experts: int) -> tuple[Node, Node, tuple[Node, ...]]:
    """Tokens and scores (T, E) of which `rows` (E, T, H) are the products."""
    product = rows.args[0] if rows.target is aten.reshape.default else rows
    if not isinstance(product, Node) or product.target is not aten.mul.Tensor or len(product.args) != 2:
        raise Unlike("rows are not tokens times their scores", rows)
    for many, column in (product.args, product.args[::-1]):
        if not isinstance(many, Node) or not isinstance(column, Node) or many.target is not aten.repeat.default or list(many.args[1]) != [experts, 1]:  # type: ignore[arg-type]
            continue
        turned = column.args[0] if column.target is aten.reshape.default and val(column).ndim == 2 and same_size(val(column).shape[1], 1) else None
        if isinstance(turned, Node) and turned.target is aten.permute.default and list(turned.args[1]) == [1, 0]:  # type: ignore[arg-type]
            x: Any = many.args[0]
            scores: Any = turned.args[0]
            if same_size(val(x).shape[0], val(scores).shape[0]) and same_size(val(scores).shape[1], experts) and val(product).dtype == val(x).dtype:
                return x, scores, (rows, product, many, column, turned)
    raise Unlike("rows are not tokens, repeated for every expert, times their scores", rows)


def _chosen(scores: Node, experts: int) -> tuple[Node, int, Node]:
    """The experts that a token's scores were scattered to, how many, and what the others' scores were filled with."""
    node = scores
    for _ in range(_MOST):
        if node.target is aten.scatter.src:
            given = arguments(node)
            ids, fill = given["index"], given["self"]
            top = ids.args[0] if ids.target is operator.getitem and ids.args[1] == 1 else None
            if given["dim"] not in (1, -1) or not isinstance(top, Node) or top.target is not aten.topk.default or not same_size(val(fill).shape[-1], experts):
                raise Unlike("scores are not scattered to the experts of a top-k", node)
            return ids, val(ids).shape[1], node
        if node.target not in (aten.sigmoid.default, aten.to.dtype, aten.softmax.int) or not isinstance(node.args[0], Node):
            break
        node = node.args[0]
    raise Unlike("scores are not scattered to the experts that were chosen", node)


def _not_zero(scores: Node, scattered: Node) -> bool:
    """The score of an expert that was not chosen, with what it is filled with in place of everything scattered."""
    fill = arguments(scattered)["self"]
    if fill.target not in (aten.full_like.default, aten.zeros_like.default, aten.full.default, aten.zeros.default):
        return True
    value = 0.0 if "zeros" in str(fill.target) else arguments(fill)["fill_value"]
    node: Any = scores
    between: list[Node] = []
    while node is not scattered:
        between.append(node)
        node = node.args[0]
    if any(n.target is aten.softmax.int for n in between) or not isinstance(value, int | float):
        return True
    try:
        (found,) = evaluate([scores], {}, {scattered: torch.full((1, 1), value, dtype=val(scattered).dtype)})
    except CannotEvaluate:
        return True
    return bool(found.ne(0).any())


def _keeps_zero(named: Mapping[str, Any]) -> bool:
    """Zero in, zero out: the gate of a token that is all zeros. With a bound below zero it would not be."""
    bounded = any(isinstance(named.get(n), int | float) and named[n] < 0 for n in ("gate_max", "act_max"))
    zero: Tensor = ACTIVATIONS[str(named.get("activation", "silu"))](torch.zeros(()), 1.0)
    return not bounded and zero.item() == 0


def _added(node: Node, experts: int, width: int) -> tuple[Node, tuple[Node, ...]]:
    """The sum over all experts, and the nodes that lead to it."""
    chain: list[Node] = []
    current = node
    while (view := user_of(current, aten.reshape.default)) is not None and len(chain) < 3:
        chain.append(view)
        current = view
    total = user_of(current, aten.sum.dim_IntList)
    shape = val(current).shape
    whole = len(shape) == 3 and same_size(shape[0], experts) and same_size(shape[2], width)
    given = arguments(total) if total is not None else {}
    if total is None or not whole or given["dim"] not in ([-3], [0]) or given["keepdim"] or given["dtype"] is not None:
        raise Unlike("what the experts give is not added up over all of them", current)
    return total, (*chain, total)
