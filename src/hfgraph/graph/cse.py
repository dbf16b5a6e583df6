"""Value numbering: which nodes compute the same thing. Used by the matcher as an equality, and to merge nodes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from hfgraph.graph.alias import Aliases
from hfgraph.graph.values import is_pure, regions, val


class ValueNumbers:
    """`same(a, b)`: the two nodes hold equal values, by structure. Random, impure and written values are only themselves."""

    def __init__(self, graph: Graph, aliases: Aliases) -> None:
        self._aliases = aliases
        self._regions = regions(graph)
        self._numbers: dict[Any, int] = {}
        self._of: dict[Node, int] = {}
        for node in graph.nodes:
            self.add(node)

    def add(self, node: Node) -> None:
        """Number a node whose inputs are numbered."""
        self._of[node] = self._numbers.setdefault(self._key(node), len(self._numbers))

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
            return ("node", self._of.get(value, value))
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
        self._regions[node] = self._regions.get(like)

    def same(self, a: Node, b: Node) -> bool:
        if a is b:
            return True
        first, second = self._of.get(a), self._of.get(b)
        return first is not None and first == second


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
        kept = first.setdefault(numbers._of[node], node)
        if kept is node or (kept in leaving and node in leaving):
            continue
        node.replace_all_uses_with(kept)
        gm.graph.erase_node(node)
        merged += 1
    return merged
