"""A mixture of experts on pairs of a token and a choice: sorted by expert, or each with a copy of its matrices."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

from hfgraph.graph.recogniser import Found, View
from hfgraph.graph.unify import label
from hfgraph.graph.values import arguments, same_size, val
from hfgraph.kernels.moe import moe
from hfgraph.rewrites.experts.products import Product, biased, is_grouped, read_product
from hfgraph.rewrites.experts.reading import Unlike, behind_cast, folded, index_of, read_activation, upright, user_of
from hfgraph.rewrites.experts.router import described, shared_expert

aten = torch.ops.aten
# How far behind a product's rows another product is looked for; these are where rows begin.
_MOST = 16
_PASSED = frozenset({aten.reshape.default, aten.to.dtype, aten.contiguous.default, aten.clone.default})
_PLACES = frozenset({aten.topk.default, aten.sort.default, aten.sort.stable})
_BEGIN = frozenset({aten.index.Tensor, aten.repeat_interleave.self_int, aten.linear.default})


def read_routed(end: Node, view: View) -> Found | None:
    """The mixture whose second product ends in `end`; None where it is another product. Raises Unlike."""
    if not any(_is_product(n) for n in _behind(end)):
        return None
    second = read_product(end, view)
    if second is None:
        return None
    activation = read_activation(second.rows, second.width)
    first = read_product(activation.source, view)
    if first is None:
        raise Unlike("what is activated is no product with the experts' matrices", activation.source)
    if not view.same(first.ids, second.ids):
        raise Unlike("the two products are with matrices of different experts", second.bare)
    if not same_size(first.experts, second.experts):
        raise Unlike("the two products choose among different numbers of experts", second.bare)
    second = biased(second, view)
    return _found(first, second, activation.named, activation.nodes, view)


def _is_product(node: Node) -> bool:
    return is_grouped(node) or node.target is aten.bmm.default


def _rows(end: Node) -> list[Node]:
    """The operands of a product that are no matrices of experts."""
    if is_grouped(end):
        return [end.args[0]]  # type: ignore[list-item]
    product: Node = end.args[0]  # type: ignore[assignment]
    return [i for i in product.all_input_nodes if i.target not in _BEGIN]


def _behind(end: Node) -> Iterator[Node]:
    """What rows were made of on their way to a product, row by row."""
    stack, seen = _rows(end), set[Node]()
    while stack and len(seen) < _MOST:
        node = stack.pop()
        if node in seen or node.op != "call_function":
            continue
        seen.add(node)
        yield node
        if not _is_product(node) and node.target not in _BEGIN:
            stack += node.all_input_nodes


def _found(first: Product, second: Product, named: Any, between: tuple[Node, ...], view: View) -> Found:
    x, choices, into = _tokens(first)
    weights, out, tail = _summed(second, choices, val(x).shape[0], view)
    flat = second.flat if second.order is not None else _wrapped(second.flat, second.experts, view, out)
    routed = folded(flat, choices, view, out), folded(weights, choices, view, out)
    args = {
        "x": x, "expert_ids": routed[0], "expert_weights": routed[1],
        "gate_up": upright(first.matrix, first.turned, view, out), "down": upright(second.matrix, second.turned, view, out),
        "gate_up_bias": first.bias, "down_bias": second.bias, **named,
    }  # fmt: skip
    own = (*first.nodes, *between, *second.nodes, *tail)
    words = described(routed[0], routed[1], second.experts, choices)
    nodes = tuple(dict.fromkeys((*own, *into, *first.shared, *second.shared)))
    return Found((out,), moe, args, nodes, tuple(n for n in dict.fromkeys(own) if n is not out), note=words + shared_expert(out, x))


def _wrapped(ids: Node, experts: Any, view: View, before: Node) -> Node:
    """Ids that gather matrices: negative ones count from the last, unless they are places that a sort gave."""
    source = ids
    while source.target in _PASSED:
        (source, *_) = source.all_input_nodes
    if source.target is operator.getitem and source.args[1] == 1 and source.all_input_nodes[0].target in _PLACES:
        return ids
    negative = view.call(aten.lt.Scalar, ids, 0, before=before)
    return view.call(aten.where.self, negative, view.call(aten.add.Tensor, ids, experts, before=before), ids, before=before)


def _tokens(first: Product) -> tuple[Node, int, tuple[Node, ...]]:
    """Whose rows the first product takes, how many rows each has, and the nodes that make rows of tokens."""
    rows = behind_cast(first.rows)
    into = (first.rows, rows) if rows is not first.rows else (rows,)
    if first.order is None:
        return _repeated(rows, into)
    picked = index_of(rows)
    if picked is None or val(picked[0]).ndim != 2:
        raise Unlike("rows are not picked from tokens by one index", rows)
    place = picked[1]
    given = arguments(place) if place.target in (aten.floor_divide.default, aten.div.Tensor_mode) else {}
    if given.get("self") is not first.order or given.get("rounding_mode", "floor") != "floor":
        raise Unlike("rows are not those of the tokens whose experts were sorted", place)
    choices = given["other"]
    if not isinstance(choices, int) or isinstance(choices, bool) or choices < 1:
        raise Unlike("how many experts a token has is no number", place)
    return picked[0], choices, (*into, place)


def _repeated(rows: Node, into: tuple[Node, ...]) -> tuple[Node, int, tuple[Node, ...]]:
    if rows.target is not aten.repeat_interleave.self_int:
        raise Unlike("rows are not tokens, each repeated for its choices", rows)
    given = arguments(rows)
    x, choices = given["self"], given["repeats"]
    if given["dim"] not in (0, -2) or val(x).ndim != 2 or not isinstance(choices, int):
        raise Unlike("rows are not tokens, each repeated for its choices", rows)
    return x, choices, into


def _summed(second: Product, choices: int, tokens: Any, view: View) -> tuple[Node, Node, tuple[Node, ...]]:
    """The routing weights, one for each row in the order before, the sum for each token, and all nodes from the second product to there."""
    weighted = user_of(second.end, aten.mul.Tensor)
    if weighted is None or len(weighted.args) != 2:
        raise Unlike(_goes_into(second.end, "the second product", "a product with the routing weights"), second.end)
    other = weighted.args[1 - weighted.args.index(second.end)]
    weights, own = _weights(other, second, weighted)
    nodes = [weighted, *own]
    back = weighted
    if second.order is not None:
        back, undone = _put_back(weighted, second.order, view)
        nodes += [back, *undone]
    apart = user_of(back, aten.reshape.default)
    sizes = val(apart).shape if apart is not None else ()
    if apart is None or len(sizes) != 3 or not same_size(sizes[0], tokens) or not same_size(sizes[1], choices):
        raise Unlike(_goes_into(back, "the weighted results", f"a view as {choices} for each token"), back)
    total = user_of(apart, aten.sum.dim_IntList)
    given = arguments(total) if total is not None else {}
    if total is None or given["dim"] not in ([-2], [1]) or given["keepdim"] or given["dtype"] is not None:
        raise Unlike(_goes_into(apart, "each token's results", "a sum over its choices"), apart)
    cast = user_of(total, aten.to.dtype) if len(total.users) == 1 else None
    return weights, cast or total, (*nodes, apart, total, *([cast] if cast else []))


def _goes_into(node: Node, what: str, expected: str) -> str:
    users = " and ".join(dict.fromkeys(label(u) for u in node.users)) or "nothing"
    return f"{what} should go into {expected}, and there is {users}"


def _weights(given: Any, second: Product, weighted: Node) -> tuple[Node, list[Node]]:
    """The weights in the order before, and the nodes that put them beside the rows."""
    column = given
    if not isinstance(column, Node) or val(column).ndim != 2 or not same_size(val(column).shape[1], 1):
        raise Unlike("results are not multiplied by one weight for each row", weighted)
    if column.target not in (aten.unsqueeze.default, aten.reshape.default):
        raise Unlike("weights are no column of one for each row", column)
    row: Any = column.args[0]
    if second.order is None:
        return row, [column]
    picked = index_of(row)
    if picked is None or picked[1] is not second.order:
        raise Unlike("weights are not sorted as the rows are", row)  # type: ignore[arg-type]
    if val(picked[0]).ndim != 1:
        raise Unlike("there is not one weight for each row", row)  # type: ignore[arg-type]
    return picked[0], [column, row]  # type: ignore[list-item]


def _put_back(weighted: Node, order: Node, view: View) -> tuple[Node, list[Node]]:
    """Rows in the order before the sort, and the nodes that find it."""
    back = user_of(weighted, aten.index.Tensor)
    picked = index_of(back)
    if back is None or picked is None or picked[0] is not weighted:
        raise Unlike(_goes_into(weighted, "the weighted results", "an index that undoes the sort"), weighted)
    inverse = picked[1]
    if inverse.target is aten.argsort.default:
        given = arguments(inverse)
        if given["self"] is order and given["dim"] in (-1, 0) and not given["descending"]:
            return back, [inverse]
    if inverse.target is aten.index_put.default:
        given = arguments(inverse)
        into, count = given["self"], given["values"]
        sizes = same_size(val(into).shape[0], val(order).shape[0]) and same_size(val(count).shape[0], val(order).shape[0])
        if list(given["indices"]) == [order] and not given["accumulate"] and sizes and _counts(count) and val(into).ndim == 1:
            return back, [inverse, into, count]
    raise Unlike("the index that puts results back is not the inverse of the sort", inverse)


def _counts(node: Node) -> bool:
    """0, 1, 2, ..."""
    if node.target is aten.arange.default:
        return True
    given = arguments(node) if node.target in (aten.arange.start, aten.arange.start_step) else {}
    return given.get("start") == 0 and given.get("step", 1) == 1
