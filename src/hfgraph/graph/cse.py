"""Value numbering: which nodes compute the same thing. Used by the matcher as an equality, and to merge nodes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from hfgraph.graph.alias import Aliases
from hfgraph.graph.values import is_pure, regions, val


class ValueNumbers:
    """`same(a, b)`: the two nodes hold equal values, by structure. Random, impure and written values are only themselves.

    Numbers are given on demand: most questions are about one node and itself.
    """

    def __init__(self, graph: Graph, aliases: Aliases) -> None:
        self._aliases = aliases
        self._regions = regions(graph)
        self._numbers: dict[Any, int] = {}
        self._of: dict[Node, int] = {}

    def number(self, node: Node) -> int:
        """The number of the node's value. Iterative: graphs are deeper than Python's stack."""
        stack = [node]
        while stack:
            current = stack[-1]
            waiting = [n for n in current.all_input_nodes if n not in self._of] if current not in self._of else []
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            if current not in self._of:
                self._of[current] = self._numbers.setdefault(self._key(current), len(self._numbers))
        return self._of[node]

    def _key(self, node: Node) -> Any:
        if not is_pure(node) or any(self._aliases.is_written(n) for n in (node, *node.all_input_nodes)):
            return node
        key = (node.target, self._frozen(node.args), self._frozen(node.kwargs), self._regions.get(node))
        try:
            hash(key)
        except TypeError:
            return node
        return key

    def _frozen(self, value: Any) -> Any:
        if isinstance(value, Node):
            return ("node", self._of[value])
        if isinstance(value, list | tuple):
            return tuple(self._frozen(v) for v in value)
        if isinstance(value, dict):
            return tuple((k, self._frozen(v)) for k, v in value.items())
        if isinstance(value, float):
            return value.hex()  # 0.0 and -0.0 compare equal, but are different constants
        return (type(value), value)

    def region(self, node: Node) -> Any:
        return self._regions.get(node)

    def place(self, node: Node, like: Node) -> None:
        """A new node stands in the region of `like`."""
        self._regions[node] = self._regions[like]

    def same(self, a: Node, b: Node) -> bool:
        return a is b or (a.target == b.target and self.number(a) == self.number(b))


def merge_equal(gm: GraphModule) -> int:
    """Common subexpression elimination. Two outputs are never merged: they would alias each other."""
    aliases = Aliases(gm.graph)
    numbers = ValueNumbers(gm.graph, aliases)
    leaving = {m for o in gm.graph.output_node().all_input_nodes for m in aliases.members(o)}
    first: dict[int, Node] = {}
    merged = 0
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or not isinstance(val(node), Tensor | list | tuple):
            continue
        kept = first.setdefault(numbers.number(node), node)
        if kept is node or (kept in leaving and node in leaving):
            continue
        if node in leaving:
            leaving.update(aliases.members(kept))
        node.replace_all_uses_with(kept)
        gm.graph.erase_node(node)
        merged += 1
    return merged
