"""What a node costs: floating-point operations and bytes, at the traced sizes.

Bytes are those of a node on its own: every input read once, every result written once. That is what eager execution
moves; Inductor moves less where it fuses. An operator that only makes a view costs nothing. Matrix products count two
operations per multiply-add, whatever else computes one value per element counts one per element of its largest tensor.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from hfgraph.graph.memory import STACK
from hfgraph.graph.op import OPS, Cost
from hfgraph.graph.values import arguments, tensors, val

aten = torch.ops.aten
_UNKNOWN = 1  # the value of a size that only the data decides


@dataclass(frozen=True)
class Work:
    """What a set of nodes costs together; `nodes` counts operators, not what picks one of several results."""

    nodes: int = 0
    flops: int = 0
    bytes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.nodes + other.nodes, self.flops + other.flops, self.bytes + other.bytes)

    def __sub__(self, other: Work) -> Work:
        return Work(self.nodes - other.nodes, self.flops - other.flops, self.bytes - other.bytes)


NOTHING = Work()


def work(nodes: Iterable[Node]) -> Work:
    """Number and cost of operators."""
    costs = [cost(n) for n in nodes if is_operator(n)]
    return Work(len(costs), sum(c.flops for c in costs), sum(c.bytes for c in costs))


Costs = dict[tuple[str, Any], Cost]  # by a node's name and target: passes keep most nodes


def total(graph: Graph, known: Costs) -> Work:
    """Work of a whole graph; `known` remembers the nodes' costs from call to call."""
    flops = moved = count = 0
    for node in graph.nodes:
        if is_operator(node):
            key = (node.name, node.target)
            price = known.get(key) or known.setdefault(key, cost(node))
            flops, moved, count = flops + price.flops, moved + price.bytes, count + 1
    return Work(count, flops, moved)


def is_operator(node: Node) -> bool:
    """A call that computes something."""
    return node.op == "call_function" and node.target is not operator.getitem


def cost(node: Node) -> Cost:
    """Cost of one node, as whole numbers."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload) or STACK in node.meta:
        return Cost()  # parameters that are stacked are views of the stack
    args, kwargs = map_arg((node.args, node.kwargs), val)
    name = node.target._schema.name.split("::")[1].partition("__")[0]  # a kernel is called after its op
    if node.target.namespace == "hfgraph" and name in OPS:
        found = OPS[name].cost(*args, **kwargs)
        return Cost(number(found.flops), number(found.bytes))
    if _is_view(node):
        return Cost()
    read, written = list(tensors(list(args) + list(kwargs.values()))), list(tensors(val(node)))
    if node.target in _LOOKUPS:
        read = [t for t in read if not t.is_floating_point()] + written  # of a table, only the rows asked for
    formula = _FLOPS.get(node.target)
    flops = formula(map_arg(arguments(node), val), val(node)) if formula else max((_count(t) for t in (*read, *written)), default=0)
    return Cost(number(flops), sum(_count(t) * t.element_size() for t in (*read, *written)))


def _is_view(node: Node) -> bool:
    """The result is the input's memory: an alias in the schema, and no cast."""
    assert isinstance(node.target, OpOverload)
    returns = node.target._schema.returns
    if not returns or not all(r.alias_info is not None and not r.alias_info.is_write for r in returns):
        return False
    source = next((v for a in node.all_input_nodes if isinstance(v := val(a), Tensor)), None)
    return source is not None and all(t.dtype == source.dtype for t in tensors(val(node)))


def number(value: Any) -> int:
    """A size, or an expression over sizes, at the traced lengths."""
    if isinstance(value, SymInt):
        return int(value.node.hint) if value.node.has_hint() else _UNKNOWN
    return int(value)


def _count(t: Tensor) -> int:
    return math.prod(number(s) for s in t.shape)


# --- operators that compute more than one value per element --------------------------------------------


def _product(inner: str) -> Callable[[dict[str, Any], Any], int]:
    """A matrix product; `inner` names the operand whose last dim is summed over."""
    return lambda given, out: 2 * _count(out) * number(given[inner].shape[-1])


def _convolution(given: dict[str, Any], out: Any) -> int:
    weight = given["weight"]
    return 2 * _count(out) * _count(weight) // max(number(weight.shape[0]), 1)


def _attention(given: dict[str, Any], out: Any) -> int:
    """Scores and their weighted sum, without credit for a causal mask."""
    q, k = given["query"], given["key"]
    return 2 * _count(q) * number(k.shape[-2]) + 2 * _count(out) * number(k.shape[-2])


def _einsum(given: dict[str, Any], out: Any) -> int:
    """Every index once, an ellipsis for what the result has besides its letters; two operations per operand after the first."""
    operands: list[Tensor] = given["tensors"]
    left, _, right = given["equation"].replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for letters, operand in zip(left.split(","), operands, strict=True):
        head, _, tail = letters.partition("...")
        shape = [number(s) for s in operand.shape]
        sizes |= dict(zip(head, shape, strict=False)) | dict(zip(reversed(tail), reversed(shape), strict=False))
    lettered = math.prod(sizes[c] for c in right.replace("...", ""))
    others = _count(out) // max(lettered, 1)
    return max(2 * (len(operands) - 1), 1) * math.prod(sizes.values()) * others


_LOOKUPS = frozenset({aten.embedding.default, aten.index_select.default, aten.gather.default})
_FLOPS: dict[Any, Callable[[dict[str, Any], Any], int]] = {
    aten.linear.default: _product("input"),
    aten.matmul.default: _product("self"),
    aten.mm.default: _product("self"),
    aten.bmm.default: _product("self"),
    aten.addmm.default: _product("mat1"),
    aten.baddbmm.default: _product("batch1"),
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv3d.default: _convolution,
    aten.convolution.default: _convolution,
    aten.scaled_dot_product_attention.default: _attention,
    aten.einsum.default: _einsum,
    **{target: (lambda given, out: 0) for target in _LOOKUPS},
}
