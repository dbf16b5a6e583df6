"""The matcher: finds a pattern's sites in a canonical graph, and says in words why a site nearly matched.

From an anchor (the pattern's rarest operator in this graph) it unifies operands downward, then climbs to the
pattern's other nodes through users of what is bound. A complete assignment is a match only if replacing it changes
nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import sympy
import torch
from torch import SymInt
from torch.fx import Graph, Node

from hfgraph.graph.alias import Aliases
from hfgraph.graph.cse import ValueNumbers
from hfgraph.graph.pattern import Pattern
from hfgraph.graph.unify import Bound, NearMiss, Unifier, label
from hfgraph.graph.values import val

aten = torch.ops.aten
# Results so cheap to compute again that another user of one does not forbid a rewrite: it simply keeps its copy.
CHEAP = frozenset(
    {aten.to.dtype, aten.reshape.default, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default, aten.slice.Tensor,
     aten.select.int}
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Match:
    """A pattern's site: graph nodes by pattern node, tensors and values by parameter name."""

    pattern: Pattern
    nodes: dict[Node, Node]
    copies: tuple[Node, ...]
    leaves: dict[str, Node]
    scalars: dict[str, Any]
    before: Node

    @property
    def outputs(self) -> list[Node]:
        return [self.nodes[o] for o in self.pattern.outputs]


class _Obstacle(NamedTuple):
    """Why all operators fit and the rewrite is still wrong: in words, and the node that forbids it."""

    reason: str
    node: Node


class Matcher:
    """Finds patterns in one graph. Whoever rewrites it tells what was `added` and `removed`.

    Attributes:
        index: the nodes that call an operator, in the order in which they came.
        verdicts: what was found against matches, or None, by what alike ones have in common.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.aliases = Aliases(graph)
        self.numbers = ValueNumbers(graph, self.aliases)
        self.verdicts: dict[Any, str | None] = {}
        self.index: dict[Any, dict[Node, None]] = defaultdict(dict)
        for node in graph.nodes:
            if node.op == "call_function":
                self.index[node.target][node] = None

    def anchor(self, pattern: Pattern) -> Node | None:
        """The pattern's node with the fewest candidates; None where some operator does not occur at all."""
        if not all(self.index.get(p.target) for p in pattern.operators):
            return None
        return self.anchors(pattern)[0]

    def anchors(self, pattern: Pattern) -> list[Node]:
        """One node of the pattern for each operator that occurs in the graph, the rarest first."""
        first: dict[Any, Node] = {}
        for p in pattern.operators:
            if self.index.get(p.target):
                first.setdefault(p.target, p)
        return sorted(first.values(), key=lambda p: len(self.index[p.target]))

    def added(self, node: Node, like: Node) -> None:
        """Take a new node into account; it stands where `like` stood."""
        self.numbers.place(node, like)
        self.index[node.target][node] = None

    def removed(self, node: Node) -> None:
        del self.index[node.target][node]

    def attempt(self, pattern: Pattern, anchor: Node, node: Node, accepts: Callable[[Match], str | None]) -> Match | NearMiss | None:
        """Match `pattern` with its `anchor` at `node`.

        Args:
            accepts: a last check of a complete match; returns the reason against it, or None.

        Returns:
            The match, the nearest miss, or None where not even the anchor fits.
        """
        return _Attempt(self, pattern, anchor, node, accepts).run()


class _Attempt(Unifier):
    def __init__(self, matcher: Matcher, pattern: Pattern, anchor: Node, node: Node, accepts: Callable[[Match], str | None]) -> None:
        super().__init__(pattern, matcher.numbers, node)
        self.matcher = matcher
        self.anchor = anchor
        self.accepts = accepts

    def run(self) -> Match | NearMiss | None:
        start = Bound({}, {})
        for bound in self.unify(self.anchor, self.node, start):
            for whole in self.climb(bound):
                match = self.complete(whole)
                if match is not None:
                    return match
        return self.best

    def climb(self, bound: Bound) -> Iterator[Bound]:
        """Bind the pattern's nodes above what is bound, through users."""
        above = {p: [b for b in p.all_input_nodes if b in bound.nodes] for p in self.pattern.operators if p not in bound.nodes}
        if not above:
            yield bound
            return
        p, below = max(above.items(), key=lambda item: sum(b not in self.pattern.leaves for b in item[1]) + bool(item[1]))
        candidates = self.candidates(p, [bound.nodes[b] for b in below])
        if not candidates and below:
            operand = bound.nodes[next((b for b in below if b not in self.pattern.leaves), below[0])]
            users = ", ".join(label(u) for u in operand.users)
            self.miss(bound, f"{label(operand)} is used by {users}, {label(p)} is expected", at=next(iter(operand.users), operand))
        for user in candidates:
            for further in self.unify(p, user, bound):
                yield from self.climb(further)

    def candidates(self, p: Node, operands: list[Node]) -> list[Node]:
        """Nodes that may be `p`: users of what is bound below it, or of another computation of the same value."""
        direct = dict.fromkeys(u for g in operands for u in g.users if u.target is p.target)
        if direct:
            return list(direct)
        same = self.numbers.same
        return [n for n in self.matcher.index[p.target] if any(same(i, g) for i in n.all_input_nodes for g in operands)]

    # --- a complete assignment is a match only if replacing it changes nothing else

    def complete(self, bound: Bound) -> Match | None:
        differs = self.sizes_differ(bound)
        if differs:
            self.miss(bound, differs, whole=True)
            return None
        placed = self.place(bound)
        if isinstance(placed, _Obstacle):
            self.miss(bound, placed.reason, at=placed.node, whole=True)
            return None
        leaves = {name: bound.nodes[p] for p, name in self.pattern.leaves.items() if p in bound.nodes}
        inner = {p: g for p, g in bound.nodes.items() if p not in self.pattern.leaves}
        match = Match(self.pattern, inner, tuple(dict.fromkeys(bound.copies)), leaves, bound.scalars, placed)
        shared = self.shared(match)
        reason = shared.reason if shared else self.accepts(match)
        if reason:
            self.miss(bound, reason, at=shared.node if shared else match.outputs[0], whole=True)
            return None
        return match

    def sizes_differ(self, bound: Bound) -> str | None:
        by_name = {name: bound.nodes[p] for p, name in self.pattern.leaves.items() if p in bound.nodes}
        table = {s: _expr(val(by_name[n]).shape[d]) for s, (n, d) in self.pattern.sizes.items() if n in by_name and -d <= val(by_name[n]).ndim}
        for wanted, given in bound.sizes:
            many = isinstance(wanted, torch.Size)
            if many and len(wanted) != len(given):
                return f"expected a shape of {len(wanted)} dims, found {tuple(given)}"
            for w, g in zip(wanted, given, strict=True) if many else [(wanted, given)]:
                expected, found = _expr(w).subs(table), _expr(g)
                if expected != found and sympy.expand(expected - found) != 0:
                    return f"expected the size {expected}, found {found}"
        return None

    def place(self, bound: Bound) -> Node | _Obstacle:
        """The node before which the replacement goes, or why there is none.

        After the last matched node is best; where a result is used earlier than that, before its first user, or
        where the match begins. Nothing may write a value in between, and modes must be those of the match.
        """
        matched = [g for p, g in bound.nodes.items() if p not in self.pattern.leaves] + list(bound.copies)
        leaves = [g for p, g in bound.nodes.items() if p in self.pattern.leaves]
        inside = set(matched)
        users = [u for o in self.pattern.outputs for u in bound.nodes[o].users if u not in inside]
        first, last = min(matched), max(matched)
        writes = self.matcher.aliases.writes([*matched, *leaves])
        obstacle: _Obstacle | None = None
        for before in (last.next, *([min(users), first] if users and min(users) < last else [])):
            if users and min(users) < before:
                obstacle = _Obstacle(f"{label(min(users))} uses a result before all inputs are there", min(users))
            elif any(not leaf < before for leaf in leaves):
                obstacle = obstacle or _Obstacle(f"{label(before)} uses a result before all inputs are there", before)
            elif before is not last.next and self.numbers.region(before) != self.region:
                obstacle = _Obstacle(f"{label(before)} uses a result in another grad or autocast region", before)
            else:
                blocking = next((w for w in writes if first < w and (w < before or w < last)), None)
                if blocking is None:
                    return before
                obstacle = _Obstacle(f"{label(blocking)} writes one of the values in between", blocking)
        assert obstacle is not None
        return obstacle

    def shared(self, match: Match) -> _Obstacle | None:
        """An inner value that something else needs would have to be computed twice."""
        inside = {*match.nodes.values(), *match.copies}
        outputs = set(match.outputs)
        for p, g in match.nodes.items():
            if g in outputs or g.target in CHEAP:
                continue
            outside = [u for u in g.users if u not in inside]
            if outside:
                return _Obstacle(f"{label(g)} has {len(g.users)} users, pattern has {len(p.users)}", g)
        return None


def _expr(size: Any) -> Any:
    """A size as a sympy expression."""
    if isinstance(size, Node):
        size = val(size)
    return size.node.expr if isinstance(size, SymInt) else sympy.Integer(size) if isinstance(size, int) else size
