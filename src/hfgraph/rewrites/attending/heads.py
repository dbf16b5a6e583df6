"""Queries, keys and values as (..., heads, positions, width), whatever product they come to meet in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from hfgraph.graph.recogniser import Refusal, View
from hfgraph.graph.unify import label
from hfgraph.graph.values import arguments, is_symbol, same_shape, same_size, val
from hfgraph.rewrites.attending.factors import Factor, Parts
from hfgraph.rewrites.attending.numbers import constant, operand
from hfgraph.rewrites.attending.scores import PRODUCTS

aten = torch.ops.aten


@dataclass
class Values:
    """From the softmax up to the product with the values.

    Attributes:
        nodes: the steps; the product is the last.
        v: (..., K, E).
        order: the dims of the product in terms of (..., Q, E), where they are in another order.
        zeroed: the conditions that weights become zero without.
    """

    nodes: list[Node]
    v: Node
    order: tuple[int, ...] = ()
    zeroed: frozenset[Factor] = frozenset()


def queries_and_keys(product: Node, view: View, before: Node) -> tuple[Node, Node] | None:
    """The operands of the scores' product as (..., Q, D) and (..., K, D)."""
    if product.target is aten.einsum.default:
        return _of_einsum(product, view, before)
    a, b = product.args[1:3] if product.target is aten.baddbmm.default else product.args[:2]
    if not isinstance(a, Node) or not isinstance(b, Node) or val(a).ndim != val(b).ndim:
        return None
    return a, transposed(b, view, before)


def transposed(node: Node, view: View, before: Node) -> Node:
    """The last two dims exchanged; the tensor itself where the graph has just exchanged them."""
    rank = val(node).ndim
    order = [*range(rank - 2), rank - 1, rank - 2]
    if node.target is aten.permute.default and node.args[1] == order:
        return operand(node)
    return view.call(aten.permute.default, node, order, before=before)


def read_values(softmax: Node, sinks: bool, view: View) -> Values | Refusal | None:
    """Follow the weights to the product with the values; None where there is none."""
    nodes, node, sliced, zeroed = [softmax], softmax, not sinks, Parts()
    while (product := next((u for u in node.users if u.target in PRODUCTS), None)) is None:
        further = next((u for u in node.users if _reaches_product(u)), None)
        if further is None:
            other = next((u for u in node.users if _reaches_product(u, anyhow=True)), None)
            return None if other is None else Refusal(f"{label(other)} stands between the softmax and the product with the values", other, tuple(nodes))
        node = further
        nodes.append(node)
        if node.target is aten.slice.Tensor:
            if sliced or node.args[1:4] != (-1, 0, -1):
                return Refusal("the weights are sliced", node, tuple(nodes))
            sliced = True
        elif node.target is aten.reshape.default and not _keeps_pairs(node):
            return Refusal("the weights are reshaped", node, tuple(nodes))
        elif node.target in _FILLED:
            if constant(node.args[2]) != 0 or node.args[0] is not nodes[-2]:
                return Refusal(f"the weights are filled with {node.args[2]}", node, tuple(nodes))
            zeroed.condition(operand(node, 1), True)
    nodes.append(product)
    found = _second_operand(product, node, view)
    if found is None or not sliced:
        return Refusal(f"{label(product)} is no product of weights and values", product, tuple(nodes))
    return Values(nodes, *found, frozenset(zeroed.factors))


_FILLED = frozenset({aten.masked_fill.Scalar, aten.masked_fill.Tensor})
_ON_THE_WAY = frozenset({aten.to.dtype, aten.reshape.default, aten.slice.Tensor, aten.clone.default}) | _FILLED


def _reaches_product(node: Node, depth: int = 4, *, anyhow: bool = False) -> bool:
    """A product comes after steps that keep the weights as they are, or after any steps that keep their shape."""
    if node.target in PRODUCTS:
        return True
    passes = node.target in _ON_THE_WAY or (anyhow and isinstance(val(node), Tensor) and same_shape(val(node), val(operand(node))))
    return depth > 0 and passes and any(_reaches_product(u, depth - 1, anyhow=anyhow) for u in node.users)


def _keeps_pairs(node: Node) -> bool:
    return all(same_size(a, b) for a, b in zip(val(operand(node)).shape[-2:], val(node).shape[-2:], strict=True))


def _second_operand(product: Node, weights: Node, view: View) -> tuple[Node, tuple[int, ...]] | None:
    """The values (..., K, E) that weights (..., Q, K) are multiplied by, and the order of the result's dims."""
    if product.target is aten.einsum.default:
        return _values_of_einsum(product, weights, view)
    if product.target is aten.baddbmm.default or product.args[0] is not weights:
        return None
    v = product.args[1]
    return (v, ()) if isinstance(v, Node) and val(v).ndim == val(weights).ndim else None


# --- einsum ------------------------------------------------------------------------------------------


def _terms(node: Node) -> tuple[list[str], list[Node], str] | None:
    """The letters of two operands, the operands, and the letters of the result."""
    given = arguments(node)
    equation, operands = given["equation"].replace(" ", ""), given["tensors"]
    left, arrow, right = equation.partition("->")
    letters = left.split(",")
    return None if not arrow or "." in equation or len(letters) != 2 or len(operands) != 2 else (letters, list(operands), right)


def _of_einsum(product: Node, view: View, before: Node) -> tuple[Node, Node] | None:
    terms = _terms(product)
    if terms is None:
        return None
    (one, two), operands, out = terms
    leading, query, key = out[:-2], out[-2], out[-1]
    q_letters, k_letters, swapped = (one, two, False) if query in one else (two, one, True)
    inner = [c for c in q_letters if c in k_letters and c not in out]
    if len(inner) != 1 or set(q_letters) != {*leading, query, inner[0]} or set(k_letters) != {*leading, key, inner[0]}:
        return None
    q, k = operands[::-1] if swapped else operands
    return _arranged(q, q_letters, leading + query + inner[0], view, before), _arranged(k, k_letters, leading + key + inner[0], view, before)


def _values_of_einsum(product: Node, weights: Node, view: View) -> tuple[Node, tuple[int, ...]] | None:
    terms = _terms(product)
    index = next((i for i, o in enumerate(terms[1]) if o is weights), None) if terms is not None else None
    if terms is None or index is None:
        return None
    letters, operands, out = terms
    pair, other = letters[index], letters[1 - index]
    leading, query, key = pair[:-2], pair[-2], pair[-1]
    width = [c for c in other if c not in pair]
    if len(width) != 1 or set(other) != {*leading, key, width[0]} or set(out) != {*leading, query, width[0]}:
        return None
    natural = leading + query + width[0]
    order = () if out == natural else tuple(natural.index(c) for c in out)
    return _arranged(operands[1 - index], other, leading + key + width[0], view, product), order


def _arranged(node: Any, letters: str, wanted: str, view: View, before: Node) -> Node:
    return node if letters == wanted else view.call(aten.permute.default, node, [letters.index(c) for c in wanted], before=before)


# --- grouped heads -----------------------------------------------------------------------------------


def ungrouped(node: Node, view: View, before: Node) -> tuple[Node, list[Node]]:
    """Keys or values before each group was repeated for its heads, and the nodes that repeat it; as they are where none does."""
    if val(node).ndim != 4:
        return node, []
    order = list(node.args[1]) if node.target is aten.permute.default else None  # type: ignore[arg-type]
    source, nodes = _repeated(node, 1) if order is None else _repeated(operand(node), order[1])
    if not nodes or order is None:
        return source if nodes else node, nodes
    return view.call(aten.permute.default, source, order, before=before), [node, *nodes]


def _repeated(node: Node, dim: int) -> tuple[Node, list[Node]]:
    """What has each of its slices along a dim of `node` repeated there, in a row, and the nodes that do so."""
    if node.target is aten.repeat_interleave.self_int:
        given = arguments(node)
        fits = isinstance(given["repeats"], int) and given["dim"] is not None and given["dim"] % 4 == dim
        return (given["self"], [node]) if fits else (node, [])
    spread = node.args[0] if node.target is aten.reshape.default else None
    single = spread.args[0] if isinstance(spread, Node) and spread.target is aten.expand.default else None
    source = single.args[0] if isinstance(single, Node) and single.target is aten.unsqueeze.default else None
    if not (isinstance(source, Node) and isinstance(single, Node) and isinstance(spread, Node)):
        return node, []
    wide, out, narrow = list(val(spread).shape), list(val(node).shape), list(val(source).shape)
    if len(narrow) != 4 or len(wide) != 5 or len(out) != 4 or single.args[1] % 5 != dim + 1:  # type: ignore[operator]
        return node, []
    kept = _alike(wide[: dim + 1] + wide[dim + 2 :], narrow)
    joined = _alike(out, [*wide[:dim], wide[dim] * wide[dim + 1], *wide[dim + 2 :]])
    return (source, [node, spread, single]) if kept and joined else (node, [])


def _alike(sizes: list[Any], others: list[Any]) -> bool:
    return all(same_size(a, b) for a, b in zip(sizes, others, strict=True))


def size(node: Node, dim: int, view: View, before: Node) -> Any:
    """A size of a tensor, as a number or as a node."""
    known = val(node).shape[dim]
    return view.call(aten.sym_size.int, node, dim % val(node).ndim, before=before) if is_symbol(known) else known


def taken_apart(steps: list[Node]) -> Node | None:
    """The step that takes scores (B * H, Q, K) apart into (B, H, Q, K)."""
    return next((n for n in steps if n.target is aten.reshape.default and val(n).ndim == 4 and val(operand(n)).ndim == 3), None)
