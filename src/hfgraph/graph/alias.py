"""Which values share storage, and which of those are written: what rewriting must not reorder."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable

from torch._ops import HigherOrderOperator
from torch.fx import Graph, Node

from hfgraph.graph.values import branches, evaluated, tensors, val, written_nodes

# Meta key of a functional node that took over the value of an in-place one: fresh, although its recorded value
# still names the old storage (views of it are recognised by that).
FRESH = "hfgraph_fresh"
# Meta key of a node whose storage is born in the graph and written later on: what it holds depends on when it is read.
_VARIES = "hfgraph_varies"


class Aliases:
    """Alias classes of a graph. A class is named by its roots: the nodes whose storage its members share."""

    def __init__(self, graph: Graph) -> None:
        self._roots: dict[Node, frozenset[Node]] = {}
        self._parts: dict[int, Node] = {}
        self._storages = {node: _storages(node) for node in graph.nodes}
        self._writes: dict[Node, list[Node]] = defaultdict(list)
        self._members: dict[Node, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            roots = self._find(node)
            self._roots[node] = roots
            for r in roots:
                self._members[r].append(node)
            for target in written_nodes(node):
                for r in self._roots[target]:
                    self._writes[r].append(node)
        for node in graph.nodes:
            node.meta.pop(_VARIES, None)
            if self.is_written(node) and not self.is_input(node):
                node.meta[_VARIES] = True

    def _find(self, node: Node) -> frozenset[Node]:
        if node.op in ("placeholder", "get_attr") or node.meta.get(FRESH):
            return frozenset([node])
        mine = self._storages[node]
        parent = node.args[0] if node.target is operator.getitem else None
        if isinstance(parent, Node) and parent in self.roots(parent) and len(mine) == 1:
            return self._part(parent, next(iter(mine)), node)
        any_operand = isinstance(node.target, HigherOrderOperator) and _may_return_operand(node)
        found = [r for i in node.all_input_nodes if any_operand or not mine.isdisjoint(self._storages[i]) for r in self._roots[i]]
        return frozenset(found) if found else frozenset([node])

    def _part(self, parent: Node, storage: int, node: Node) -> frozenset[Node]:
        """One result of an operator that has several has a class of its own; the operator is a member of all of them."""
        root = self._parts.setdefault(storage, node)
        if root is node:
            self._roots[parent] |= {root}
            self._members[root].append(parent)
        return frozenset([root])

    def roots(self, node: Node) -> frozenset[Node]:
        """The node's storage classes; a node added after the analysis is its own."""
        return self._roots.get(node, frozenset([node]))

    def members(self, node: Node) -> list[Node]:
        """All nodes that share storage with `node`, itself included, in graph order."""
        return sorted({m for r in self.roots(node) for m in self._members[r]})

    def writes(self, nodes: Iterable[Node]) -> list[Node]:
        """The nodes that write into the storage of any of `nodes`, in graph order."""
        return sorted({w for r in {r for n in nodes for r in self.roots(n)} for w in self._writes.get(r, ())})

    def readers(self, node: Node) -> list[Node]:
        """The nodes that read its storage, in graph order; views, writes, and taking one of several results are no reads."""
        members = {m for r in self.roots(node) for m in self._members[r]}
        return sorted({u for m in members for u in m.users if u not in members and u.target is not operator.getitem})

    def is_written(self, node: Node) -> bool:
        return any(self._writes.get(r) for r in self.roots(node))

    def is_input(self, node: Node) -> bool:
        """Shares storage with something that outlives the graph."""
        return any(r.op in ("placeholder", "get_attr") for r in self.roots(node))

    def inherit(self, new: Node, old: Node) -> None:
        """`new` takes the place of `old`, as one more member of its classes."""
        self._roots[new] = self.roots(old)
        for r in self._roots[new]:
            self._members[r].append(new)


def stand_for(by: Node, node: Node) -> None:
    """Readers of a node read another, which has its value. What views of the node show is the other's storage from then on."""
    old = _storages(node)
    node.replace_all_uses_with(by)
    stack = [by] if old != _storages(by) else []
    while stack:
        for user in stack.pop().users:
            if not old.isdisjoint(_storages(user)):
                user.meta["val"] = evaluated(user)
                stack.append(user)


def varies(node: Node) -> bool:
    """What it holds depends on when it is read: something is written into its storage, which is no input's."""
    return _VARIES in node.meta


def _may_return_operand(node: Node) -> bool:
    """A branch returns a view of an operand. The values recorded for a higher-order operator do not say so: they are fresh."""
    return any(Aliases(b).is_input(o) for b in branches(node) for o in b.output_node().all_input_nodes)


def _storages(node: Node) -> set[int]:
    return {t.untyped_storage()._cdata for t in tensors(val(node))}
