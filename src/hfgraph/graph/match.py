"""The matcher: finds a pattern's sites in a canonical graph, and says in words why a site nearly matched.

From an anchor (the pattern's rarest operator in this graph) it unifies operands downward, trying both orders of
commutative operators, then climbs to the pattern's other nodes through users of what is bound. Numbers and dtypes
bind by value, sizes by their symbolic expression, tensors by value number: a value computed twice is one value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import SymInt, Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node

from hfgraph.graph.alias import Aliases
from hfgraph.graph.cse import ValueNumbers
from hfgraph.graph.pattern import Pattern, Wild
from hfgraph.graph.values import arguments, is_symbol, same_size, val

aten = torch.ops.aten
COMMUTATIVE = frozenset(
    {aten.add.Tensor, aten.mul.Tensor, aten.maximum.default, aten.minimum.default, aten.logical_and.default, aten.logical_or.default, aten.bitwise_and.Tensor,
     aten.bitwise_or.Tensor, aten.__and__.Tensor, aten.__or__.Tensor}
)  # fmt: skip
# Results so cheap to compute again that another user of one does not forbid a rewrite: it simply keeps its copy.
CHEAP = frozenset(
    {aten.to.dtype, aten.reshape.default, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default, aten.slice.Tensor,
     aten.select.int}
)  # fmt: skip
# Operators whose size argument follows from the shape of the result.
_BY_RESULT = frozenset({aten.reshape.default, aten.expand.default})


def label(node: Node) -> str:
    """An operator as people call it: `mean`, `rms_norm`."""
    if isinstance(node.target, OpOverload):
        return node.target._schema.name.split("::")[1]
    return node.op if node.op != "call_function" else getattr(node.target, "__name__", str(node.target))


@dataclass(frozen=True)
class NearMiss:
    """A site that began like the pattern: where, how far, and the first difference."""

    node: Node
    matched: int
    of: int
    reason: str


@dataclass(frozen=True, eq=False)
class Match:
    """A pattern's site: graph nodes by pattern node, tensors and values by parameter name."""

    pattern: Pattern
    nodes: dict[Node, Node]
    copies: frozenset[Node]
    leaves: dict[str, Node]
    scalars: dict[str, Any]
    before: Node

    @property
    def outputs(self) -> list[Node]:
        return [self.nodes[o] for o in self.pattern.outputs]


@dataclass(frozen=True, eq=False)
class _Bound:
    """What an attempt has bound so far; extended by copying, so that alternatives do not disturb each other."""

    nodes: dict[Node, Node]
    scalars: dict[str, Any]
    copies: tuple[Node, ...] = ()
    sizes: tuple[tuple[Any, Any], ...] = ()

    def with_node(self, p: Node, g: Node) -> _Bound:
        return replace(self, nodes={**self.nodes, p: g})


class Matcher:
    """Finds patterns in one graph. After a rewrite call `refresh`, or make a new one."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.aliases = Aliases(graph)
        self.numbers = ValueNumbers(graph, self.aliases)
        self.index: dict[Any, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            if node.op == "call_function":
                self.index[node.target].append(node)

    def anchor(self, pattern: Pattern) -> Node | None:
        """The pattern's node with the fewest candidates; None where some operator does not occur at all."""
        counts = {p: len(self.index.get(p.target, ())) for p in pattern.nodes if not is_symbol(val(p))}
        rarest = min(counts, key=lambda p: counts[p])
        return rarest if counts[rarest] else None

    def added(self, node: Node, like: Node) -> None:
        """Take a new node into account; it stands where `like` stood."""
        self.numbers.place(node, like)
        self.index[node.target].append(node)

    def removed(self, node: Node) -> None:
        self.index[node.target].remove(node)

    def attempt(self, pattern: Pattern, anchor: Node, node: Node, accepts: Callable[[Match], str | None]) -> Match | NearMiss | None:
        """Match `pattern` with its `anchor` at `node`.

        Args:
            accepts: a last check of a complete match; returns the reason against it, or None.

        Returns:
            The match, the nearest miss, or None where not even the anchor fits.
        """
        return _Attempt(self, pattern, anchor, node, accepts).run()


class _Attempt:
    def __init__(self, matcher: Matcher, pattern: Pattern, anchor: Node, node: Node, accepts: Callable[[Match], str | None]) -> None:
        self.m = matcher
        self.pattern = pattern
        self.anchor = anchor
        self.node = node
        self.accepts = accepts
        self.region = matcher.numbers.region(node)
        self.best: NearMiss | None = None

    def run(self) -> Match | NearMiss | None:
        start = _Bound({}, {})
        for bound in self.unify(self.anchor, self.node, start):
            for whole in self.climb(bound):
                match = self.complete(whole)
                if match is not None:
                    return match
        return self.best

    def miss(self, bound: _Bound, reason: str) -> None:
        matched = sum(p not in self.pattern.leaves for p in bound.nodes)
        if self.best is None or matched > self.best.matched:
            self.best = NearMiss(self.node, matched, len(self.pattern.nodes), reason)

    # --- unification: each yields the ways in which p can be g

    def unify(self, p: Any, g: Any, bound: _Bound) -> Iterator[_Bound]:
        if isinstance(p, Wild):
            yield from self.unify_scalar(p, g, bound)
        elif isinstance(p, Node) and p in self.pattern.leaves:
            yield from self.unify_leaf(p, g, bound)
        elif isinstance(p, Node) and is_symbol(val(p)):
            yield replace(bound, sizes=(*bound.sizes, (p, g)))
        elif isinstance(p, Node):
            yield from self.unify_node(p, g, bound)
        elif isinstance(p, list | tuple):
            yield from self.unify_list(p, g, bound)
        elif isinstance(g, Node) or is_symbol(g):
            known = val(g) if isinstance(g, Node) else g
            if isinstance(known, SymInt) and isinstance(p, int) and same_size(known, p):
                yield bound
            else:
                self.miss(bound, f"expected the constant {p}, found a computed value ({g})")
        elif _equal(p, g):
            yield bound
        else:
            self.miss(bound, f"expected {p}, found {g}")

    def unify_scalar(self, p: Wild, g: Any, bound: _Bound) -> Iterator[_Bound]:
        if isinstance(g, Node) or is_symbol(g):
            self.miss(bound, f"{p.name} is computed in the graph ({g}); a {p.kind} is needed")
        elif not p.accepts(g):
            self.miss(bound, f"{p.name} is {g!r}; a {p.kind} is needed")
        elif p.name not in bound.scalars:
            yield replace(bound, scalars={**bound.scalars, p.name: g})
        elif _equal(bound.scalars[p.name], g):
            yield bound
        else:
            self.miss(bound, f"{p.name} is {bound.scalars[p.name]} in one place and {g} in another")

    def unify_leaf(self, p: Node, g: Any, bound: _Bound) -> Iterator[_Bound]:
        name = self.pattern.leaves[p]
        if not isinstance(g, Node) or not isinstance(val(g), Tensor):
            self.miss(bound, f"{name} must be a tensor, found {g}")
        elif p in bound.nodes:
            if self.m.numbers.same(bound.nodes[p], g):
                yield bound
            else:
                self.miss(bound, f"{name} is {bound.nodes[p]} in one place and {g} in another")
        else:
            dims, found = self.pattern.dims[name], val(g)
            if not dims.any_rank and found.ndim != len(dims.names):
                self.miss(bound, f"{name} has {found.ndim} dims, {len(dims.names)} are expected")
            elif self.pattern.dtypes is not None and found.is_floating_point() and found.dtype not in self.pattern.dtypes:
                self.miss(bound, f"{name} is {found.dtype}, the pattern needs another dtype")
            else:
                yield bound.with_node(p, g)

    def unify_node(self, p: Node, g: Any, bound: _Bound) -> Iterator[_Bound]:
        if p in bound.nodes:
            if isinstance(g, Node) and self.m.numbers.same(bound.nodes[p], g):
                yield bound if g is bound.nodes[p] else replace(bound, copies=(*bound.copies, g))
            else:
                self.miss(bound, f"{label(p)} is needed twice as one value, found {bound.nodes[p]} and {g}")
        elif not isinstance(g, Node) or g.op != "call_function" or g.target is not p.target:
            self.miss(bound, f"expected {label(p)}, found {label(g) if isinstance(g, Node) else g}")
        elif self.m.numbers.region(g) != self.region:
            self.miss(bound, f"{label(g)} lies in another grad or autocast region")
        else:
            yield from self.unify_arguments(p, g, bound.with_node(p, g))

    def unify_arguments(self, p: Node, g: Node, bound: _Bound) -> Iterator[_Bound]:
        if not isinstance(p.target, OpOverload):
            yield from self.unify_list(p.args, g.args, bound)
            return
        wanted, given = arguments(p), arguments(g)
        if p.target in _BY_RESULT:
            bound = replace(bound, sizes=(*bound.sizes, (val(p).shape, val(g).shape)))
            yield from self.unify(wanted["self"], given["self"], bound)
            return
        yield from self.unify_list(list(wanted.values()), list(given.values()), bound)
        if p.target in COMMUTATIVE:
            given["self"], given["other"] = given["other"], given["self"]
            yield from self.unify_list(list(wanted.values()), list(given.values()), bound)

    def unify_list(self, p: Any, g: Any, bound: _Bound) -> Iterator[_Bound]:
        if not isinstance(g, list | tuple) or len(p) != len(g):
            self.miss(bound, f"expected {len(p)} values, found {g}")
        elif not p:
            yield bound
        else:
            for first in self.unify(p[0], g[0], bound):
                yield from self.unify_list(p[1:], g[1:], first)

    def climb(self, bound: _Bound) -> Iterator[_Bound]:
        """Bind the pattern's nodes above what is bound, through users."""
        step = self.next_step(bound)
        if step is None:
            yield bound
            return
        p, below = step
        candidates = [u for u in bound.nodes[below].users if u.target is p.target]
        if not candidates:
            self.miss(bound, f"{label(below)} is used by {', '.join(label(u) for u in bound.nodes[below].users)}, {label(p)} is expected")
        for user in candidates:
            for further in self.unify(p, user, bound):
                yield from self.climb(further)

    def next_step(self, bound: _Bound) -> tuple[Node, Node] | None:
        """The first unbound pattern node above a bound one; inner nodes lead to it rather than leaves."""
        open_nodes = [p for p in self.pattern.nodes if p not in bound.nodes and not is_symbol(val(p))]
        for inner in (True, False):
            for p in open_nodes:
                for below in p.all_input_nodes:
                    if below in bound.nodes and (below not in self.pattern.leaves) == inner:
                        return p, below
        return None

    # --- a complete assignment is a match only if replacing it changes nothing else

    def complete(self, bound: _Bound) -> Match | None:
        reason = self.sizes_differ(bound)
        placed = None if reason else self.place(bound)
        if isinstance(placed, str) or reason:
            self.miss(bound, reason or str(placed))
            return None
        leaves = {name: bound.nodes[p] for p, name in self.pattern.leaves.items() if p in bound.nodes}
        inner = {p: g for p, g in bound.nodes.items() if p not in self.pattern.leaves}
        assert placed is not None
        match = Match(self.pattern, inner, frozenset(bound.copies), leaves, bound.scalars, placed)
        reason = self.shared(match) or self.accepts(match)
        if reason:
            self.miss(bound, reason)
            return None
        return match

    def sizes_differ(self, bound: _Bound) -> str | None:
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

    def place(self, bound: _Bound) -> Node | str:
        """The node before which the replacement goes, or why there is none."""
        matched = [g for p, g in bound.nodes.items() if p not in self.pattern.leaves] + list(bound.copies)
        leaves = [g for p, g in bound.nodes.items() if p in self.pattern.leaves]
        inside = set(matched)
        users = [u for o in self.pattern.outputs for u in bound.nodes[o].users if u not in inside]
        before = max(matched).next
        if users and min(users) < before:
            before = min(users)
            if not max(leaves) < before:
                return f"{label(before)} uses a result before all inputs are there"
        first = min(matched)
        for write in self.m.aliases.writes([*matched, *leaves]):
            if first < write < before:
                return f"{label(write)} writes one of the values in between"
        return before

    def shared(self, match: Match) -> str | None:
        """An inner value that something else needs would have to be computed twice."""
        inside = {*match.nodes.values(), *match.copies}
        outputs = set(match.outputs)
        for p, g in match.nodes.items():
            if g in outputs or g.target in CHEAP:
                continue
            outside = [u for u in g.users if u not in inside]
            if outside:
                return f"{label(g)} has {len(g.users)} users, pattern has {len(p.users)}"
        return None


def _expr(size: Any) -> Any:
    """A size as a sympy expression."""
    if isinstance(size, Node):
        size = val(size)
    return size.node.expr if isinstance(size, SymInt) else sympy.Integer(size) if isinstance(size, int) else size


def _equal(a: Any, b: Any) -> bool:
    """Constants are equal by value; 1 and 1.0 are, True and 1 are not, nor are 0.0 and -0.0."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, float) and isinstance(b, float):
        return a.hex() == b.hex()
    return a == b
