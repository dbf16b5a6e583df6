"""What is computed from values that are taken apart, up to where something else flows in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from hfgraph.graph.evaluate import data
from hfgraph.graph.values import same_size, val, written_nodes
from hfgraph.rewrites.recurrences.cuts import Cut
from hfgraph.rewrites.recurrences.spread import factors

aten = torch.ops.aten
# Operators at which a value from outside may join: what decays, what a state is read with, the state of before.
_JOINED = frozenset(
    {aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.maximum.default, aten.matmul.default, aten.bmm.default, aten.einsum.default, aten.cat.default}
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Region:
    """A part of a graph.

    Attributes:
        cuts: the values that are taken apart; none where there is but one token.
        joined: the other values that it depends on.
        nodes: everything else that it consists of, in order.
        state: what the graph is given and leaves changed, of a region without cuts.
    """

    cuts: tuple[Cut, ...]
    joined: tuple[Node, ...]
    nodes: tuple[Node, ...]
    state: Node | None = None

    @property
    def begin(self) -> tuple[Node, ...]:
        """All values that it begins with."""
        return tuple(dict.fromkeys((*(c.base for c in self.cuts), *self.joined, *([self.state] if self.state else []))))


def regions(graph: Graph, cuts: Iterable[Cut]) -> Iterator[Region]:
    """The parts of a graph that hang together through what at least two values become that are cut alike."""
    alike: dict[tuple[int, int], list[Cut]] = defaultdict(list)
    for cut in cuts:
        alike[cut.length, cut.padded].append(cut)
    known: dict[Node, frozenset[Node]] = {}
    # Where places are added, these are the tokens; and a scan begins with the longest.
    for _, found in sorted(alike.items(), key=lambda kv: (kv[0][0] == kv[0][1], -kv[0][0])):
        if len({c.base for c in found}) > 1:
            yield from _hanging_together(graph, found, known)


def _hanging_together(graph: Graph, cuts: Iterable[Cut], known: dict[Node, frozenset[Node]]) -> Iterator[Region]:
    pieces = {piece: cut for cut in cuts for piece in cut.pieces}
    groups = _Groups()
    first: dict[Node, Cut] = {}
    for node in graph.nodes:
        if node in pieces and pieces[node].base not in groups:
            groups.add(node)
            first[node] = pieces[node]
        elif node.op == "call_function":
            inside = [i for i in node.all_input_nodes if i in groups]
            outside = [i for i in node.all_input_nodes if i not in groups and data(i, known)]
            if inside and (not outside or node.target in _JOINED) and all(t in groups for t in written_nodes(node)):
                starts = [i for i in outside if _starts(i, known)]
                for start in starts:
                    groups.add(start)
                groups.join(node, [*inside, *starts])
    for nodes in groups.all():
        taken = tuple(dict.fromkeys(first[n] for n in nodes if n in first))
        bases = {c.base for c in taken}
        if len(bases) > 1:
            inputs = dict.fromkeys(i for n in nodes if n not in first for i in n.all_input_nodes)
            joined = tuple(i for i in inputs if i not in groups and i not in bases and isinstance(val(i), Tensor) and data(i, known))
            yield Region(taken, joined, tuple(nodes))


def _starts(node: Node, known: dict[Node, frozenset[Node]]) -> bool:
    """Whether a value is a state's beginning, a constant, and what the first token adds to it of the model's parameters."""
    return node.target in _JOINED and any(isinstance(val(i), Tensor) and not data(i, known) for i in node.all_input_nodes)


def steps(graph: Graph) -> Iterator[Region]:
    """The parts of a graph around an input that is overwritten with what is computed from it: a state, and one token."""
    known: dict[Node, frozenset[Node]] = {}
    for write in graph.find_nodes(op="call_function", target=aten.copy_.default):
        state = write.args[0]
        if isinstance(state, Node) and state.op == "placeholder" and val(state).is_floating_point() and val(state).ndim > 1:
            yield _around(graph, state, known)


def _around(graph: Graph, state: Node, known: dict[Node, frozenset[Node]]) -> Region:
    inside = {state}
    joined: dict[Node, None] = {}
    for node in graph.nodes:
        if node.op != "call_function" or inside.isdisjoint(node.all_input_nodes) or written_nodes(node):
            continue
        outside = [i for i in node.all_input_nodes if i not in inside and data(i, known)]
        if not outside or node.target in _JOINED:
            inside.add(node)
            for views in (list(v) for other in outside for v in _made_of(other, val(state).shape[0])):
                inside.update(views[:-1])
                joined[views[-1]] = None
    return Region((), tuple(joined), tuple(sorted(inside - {state})), state)


def _made_of(node: Node, batch: Any) -> Iterator[Iterator[Node]]:
    """A value with what it shows; of an outer product both factors, the product with the first of them."""
    found = factors(node)
    if not found:
        yield _views(node, batch)
    for i, factor in enumerate(found):
        yield (n for n in (*([node] if i == 0 else []), *_views(factor, batch)))


def _views(node: Node, batch: Any) -> Iterator[Node]:
    """A value, and what it shows with more or fewer dims of one place, which a model may do for each use anew, or with the batch among the heads."""
    yield node
    while node.target in (aten.unsqueeze.default, aten.squeeze.dim) or (node.target is aten.reshape.default and not same_size(val(node).shape[0], batch)):
        assert isinstance(node.args[0], Node)
        node = node.args[0]
        yield node


class _Groups:
    """Nodes that hang together."""

    def __init__(self) -> None:
        self._parent: dict[Node, Node] = {}

    def __contains__(self, node: Any) -> bool:
        return node in self._parent

    def add(self, node: Node) -> None:
        self._parent[node] = node

    def join(self, node: Node, others: Iterable[Node]) -> None:
        self.add(node)
        for other in others:
            self._parent[self._root(other)] = node

    def _root(self, node: Node) -> Node:
        while self._parent[node] is not node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def all(self) -> list[list[Node]]:
        """The groups, each in the order of the graph."""
        found: dict[Node, list[Node]] = defaultdict(list)
        for node in self._parent:
            found[self._root(node)].append(node)
        return list(found.values())
