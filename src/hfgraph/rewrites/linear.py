"""Regions that are linear in one value and otherwise depend on a few tables that multiply it."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from hfgraph.graph.recogniser import View
from hfgraph.graph.values import same_shape, val

aten = torch.ops.aten
# What only moves values, casts them, or turns their sign.
MOVES = frozenset(
    {aten.slice.Tensor, aten.select.int, aten.reshape.default, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default,
     aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int, operator.getitem, aten.flatten.using_ints, aten.unflatten.int,
     aten.reshape_as.default, aten.view_as.default, aten.to.dtype, aten.view_as_complex.default, aten.view_as_real.default}
)  # fmt: skip
_JOINS = frozenset({aten.cat.default, aten.stack.default})
LINEAR = MOVES | _JOINS | {aten.neg.default, aten.clone.default, aten.contiguous.default}
_SUMS = frozenset({aten.add.Tensor, aten.sub.Tensor})
# What may follow the last sum of a region and still belong to it.
_ENDS = _JOINS | {aten.to.dtype, aten.reshape.default, aten.flatten.using_ints}
_MOST_STEPS, _MOST_NODES = 5, 64


@dataclass(frozen=True, eq=False)
class Region:
    """The value `end` is linear in `x`: every product on the way multiplies it by one of the `tables`.

    Attributes:
        nodes: in order, `end` the last.
        tables: the distinct ones; `same` maps each that occurs to the one that stands for it.
    """

    x: Node
    end: Node
    nodes: tuple[Node, ...]
    tables: tuple[Node, ...]
    same: dict[Node, Node]


def regions(anchor: Node, view: View) -> Iterator[Region]:
    """The regions around a sum of two products, or around a complex product: largest first."""
    products = _products(anchor)
    if not products:
        return
    behind: dict[Node, frozenset[Node]] = {}
    shared = frozenset.intersection(*(_behind(p.args[0], behind) | _behind(p.args[1], behind) for p in products))  # type: ignore[arg-type]
    for end in _ends(anchor):
        for x in sorted((n for n in shared if _alike(n, end)), reverse=True):
            wide = x.args[0] if _widens(x) else None
            for start in (wide, x) if isinstance(wide, Node) else (x,):
                found = _region(end, start, behind, view)
                if found is not None:
                    yield found


def _alike(x: Node, end: Node) -> bool:
    a, b = val(x), val(end)
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.is_floating_point() and same_shape(a, b)


def _products(anchor: Node) -> list[Node]:
    """The products that an anchor adds, or the complex one whose parts it takes."""
    if anchor.target is aten.view_as_real.default:
        operands = [anchor.args[0]]
    elif anchor.kwargs or len(anchor.args) != 2:
        return []
    else:
        operands = [_uncast(a) for a in anchor.args]
    found = [o for o in operands if isinstance(o, Node) and o.target is aten.mul.Tensor and len(_inputs(o)) == len(o.args) == 2]
    return found if len(found) == len(operands) else []


def _uncast(value: object) -> object:
    return value.args[0] if isinstance(value, Node) and value.target is aten.to.dtype else value


def _widens(node: Node) -> bool:
    """A cast that loses nothing: the value before it is the same."""
    if node.target is not aten.to.dtype:
        return False
    before, after = val(node.args[0]).dtype, val(node).dtype  # type: ignore[arg-type]
    return before.is_floating_point and before != after and torch.promote_types(before, after) == after


def _ends(anchor: Node) -> list[Node]:
    """Where a region around `anchor` may end, the furthest first: as long as values are only joined, cast down and laid flat."""
    chain = [anchor]
    while len(chain) <= _MOST_STEPS and len(chain[-1].users) == 1:
        user = next(iter(chain[-1].users))
        if user.target not in _ENDS or _widens(user):
            break
        chain.append(user)
    return chain[::-1]


def _inputs(node: Node) -> list[Node]:
    return [i for i in node.all_input_nodes if isinstance(val(i), Tensor | list | tuple)]


def _behind(node: Node, known: dict[Node, frozenset[Node]]) -> frozenset[Node]:
    """A value and all those that it is made of by moving values alone."""
    if node not in known:
        seen, stack = {node}, [node]
        while stack and len(seen) < _MOST_NODES:
            current = stack.pop()
            new = [i for i in _inputs(current) if i not in seen] if current.target in LINEAR else []
            seen.update(new)
            stack += new
        known[node] = frozenset(seen)
    return known[node]


def _region(end: Node, x: Node, behind: dict[Node, frozenset[Node]], view: View) -> Region | None:
    """Everything between `x` and `end`; None where something else flows in."""
    nodes: set[Node] = set()
    same: dict[Node, Node] = {}
    stack = [end]
    while stack:
        node = stack.pop()
        if node is x or node in nodes:
            continue
        nodes.add(node)
        if node.target is aten.mul.Tensor and len(_inputs(node)) == 2:
            inside = [a for a in _inputs(node) if x in _behind(a, behind)]
            if len(inside) != 1:
                return None
            table = next(a for a in _inputs(node) if a is not inside[0])
            same[table] = next((t for t in same.values() if view.same(t, table)), table)
            stack += inside
        elif _is_sum(node) or (node.target in LINEAR and len(nodes) < _MOST_NODES):
            stack += _inputs(node)
        else:
            return None
    return Region(x, end, tuple(sorted(nodes)), tuple(dict.fromkeys(same.values())), same)


def _is_sum(node: Node) -> bool:
    """Of two tensors, as they are."""
    return node.target in _SUMS and not node.kwargs and len(node.args) == len(_inputs(node)) == 2


def structure(region: Region) -> object:
    """Equal for two regions that compute the same of values laid out alike."""
    number = {region.x: "x", **{t: f"table {region.tables.index(s)}" for t, s in region.same.items()}}
    number |= {n: f"node {i}" for i, n in enumerate(region.nodes)}

    def name(value: object) -> object:
        if isinstance(value, Node):
            return number.get(value) or str(val(value))
        return tuple(name(v) for v in value) if isinstance(value, list | tuple) else value

    laid_out = tuple((str(val(n).dtype), str(tuple(val(n).shape)), str(val(n).stride())) for n in (region.x, region.end, *region.tables))
    return tuple((n.target, name(n.args), str(n.kwargs)) for n in region.nodes), laid_out
