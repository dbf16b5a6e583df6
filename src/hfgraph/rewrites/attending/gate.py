"""An output scaled by ``sigmoid(logsumexp(scores) - sink)``: what a sink among the scores would leave of it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from hfgraph.graph.recogniser import View
from hfgraph.graph.values import arguments, same_shape, same_size, val

aten = torch.ops.aten
_CAST = frozenset({aten.to.dtype})
_SHAPED = frozenset({aten.to.dtype, aten.reshape.default, aten.unsqueeze.default})


@dataclass(frozen=True)
class Gate:
    """With m = logsumexp(s), ``exp(s_j - m) * sigmoid(m - sink) = exp(s_j) / (exp(m) + exp(sink))``.

    Attributes:
        sinks: broadcastable to (..., H, Q, 1).
        nodes: the steps; the scaled output is the last.
    """

    sinks: Node
    nodes: tuple[Node, ...]


def read_gate(softmax: Node, product: Node, view: View) -> Gate | None:
    """The gate on the product of weights and values, where there is one."""
    for scaled in product.users:
        if scaled.target is aten.mul.Tensor and all(isinstance(a, Node) for a in scaled.args):
            gate = _scaling(scaled, product, softmax, view)
            if gate is not None:
                return gate
    return None


def _scaling(scaled: Node, product: Node, softmax: Node, view: View) -> Gate | None:
    factor: Any = scaled.args[0] if scaled.args[1] is product else scaled.args[1]
    sigmoid, above = _below(factor, _SHAPED)
    if sigmoid.target is not aten.sigmoid.default or not _is_one_number_per_query(factor, product):
        return None
    difference, between = _below(sigmoid.args[0], _CAST)
    if difference.target is not aten.sub.Tensor or arguments(difference)["alpha"] != 1:
        return None
    first, sinks = difference.args
    if not isinstance(first, Node) or not isinstance(sinks, Node):
        return None
    total, beside = _below(first, _SHAPED)
    if total.target is not aten.logsumexp.default or arguments(total)["dim"] not in ([-1], [val(softmax).ndim - 1]):
        return None
    summed, within = _below(total.args[0], _CAST)
    scores, _ = _below(arguments(softmax)["self"], _CAST)
    column = val(difference).ndim == val(product).ndim
    if not view.same(summed, scores) or not same_shape(val(difference), val(factor) if column else val(factor)[..., 0]):
        return None
    sinks = sinks if column else view.call(aten.unsqueeze.default, sinks, -1, before=scaled)
    return Gate(sinks, (*within, total, *beside, difference, *between, sigmoid, *above, scaled))


def _below(node: Any, through: Set[Any]) -> tuple[Node, list[Node]]:
    """The first node that does something else than those it goes `through`, and the nodes on the way."""
    passed = []
    while node.target in through:
        passed.append(node)
        node = node.args[0]
    return node, passed


def _is_one_number_per_query(factor: Any, product: Node) -> bool:
    """(..., H, Q, 1) beside (..., H, Q, E)."""
    shape, wide = val(factor).shape, val(product).shape
    return len(shape) == len(wide) and same_size(shape[-1], 1) and all(same_size(a, b) for a, b in zip(shape[:-1], wide[:-1], strict=True))
