"""Unification: the ways in which a piece of a pattern can be a piece of a graph, and the first difference in words.

Numbers and dtypes bind by value, sizes by their symbolic expression, tensors by value number: a value computed twice
is one value. Commutative operators are tried in both orders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import SymInt, Tensor
from torch._ops import OpOverload
from torch.fx import Node

from hfgraph.graph.cse import ValueNumbers
from hfgraph.graph.pattern import Pattern, Wild
from hfgraph.graph.values import arguments, is_symbol, same_size, val

aten = torch.ops.aten
COMMUTATIVE = frozenset(
    {aten.add.Tensor, aten.mul.Tensor, aten.maximum.default, aten.minimum.default, aten.logical_and.default, aten.logical_or.default, aten.bitwise_and.Tensor,
     aten.bitwise_or.Tensor, aten.__and__.Tensor, aten.__or__.Tensor}
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
    """A site that began like the pattern: where, how far, and the first difference.

    Attributes:
        node: where the attempt began.
        matched: how many of the pattern's operators fitted, `of` how many.
        reason: the first difference, in words.
        at: the first node that differs.
        fitted: the nodes that fitted.
        reached: how far the attempt came: those that fitted, and the one that differs in its own arguments.
        whole: all operators fitted, and something around them forbids the rewrite.
    """

    node: Node
    matched: int
    of: int
    reason: str
    at: Node
    fitted: tuple[Node, ...]
    reached: int
    whole: bool


@dataclass(frozen=True, eq=False)
class Bound:
    """What an attempt has bound so far; extended by copying, so that alternatives do not disturb each other."""

    nodes: dict[Node, Node]
    scalars: dict[str, Any]
    copies: tuple[Node, ...] = ()
    sizes: tuple[tuple[Any, Any], ...] = ()

    def with_node(self, p: Node, g: Node) -> Bound:
        return replace(self, nodes={**self.nodes, p: g})


class Unifier:
    """Unifies one pattern with one graph, remembering how near it came."""

    def __init__(self, pattern: Pattern, numbers: ValueNumbers, node: Node) -> None:
        self.pattern = pattern
        self.numbers = numbers
        self.node = node
        self.region = numbers.region(node)
        self.best: NearMiss | None = None

    def miss(self, bound: Bound, reason: str, *, at: Any = None, whole: bool = False) -> None:
        """Take down a failure. `at` differs, and does not count as matched; a match that is `whole` has all its nodes."""
        reached = sum(p not in self.pattern.leaves for p in bound.nodes)
        if self.best is not None and (reached, whole) <= (self.best.reached, self.best.whole):
            return
        fitted = tuple(g for p, g in bound.nodes.items() if p not in self.pattern.leaves and (whole or g is not at))
        where = at if isinstance(at, Node) else fitted[-1] if fitted else self.node
        self.best = NearMiss(self.node, len(fitted), len(self.pattern.operators), reason, where, fitted, reached, whole)

    def unify(self, p: Any, g: Any, bound: Bound, owner: Node | None = None) -> Iterator[Bound]:
        """The ways to bind `p` to `g`; `owner` is the graph node that `g` is an argument of."""
        if isinstance(p, Wild):
            yield from self.unify_scalar(p, g, bound, owner)
        elif isinstance(p, Node) and p in self.pattern.leaves:
            yield from self.unify_leaf(p, g, bound)
        elif isinstance(p, Node) and is_symbol(val(p)):
            yield replace(bound, sizes=(*bound.sizes, (p, g)))
        elif isinstance(p, Node):
            yield from self.unify_node(p, g, bound)
        elif isinstance(p, list | tuple):
            yield from self.unify_list(p, g, bound, owner)
        elif isinstance(g, Node) or is_symbol(g):
            known = val(g) if isinstance(g, Node) else g
            if isinstance(known, SymInt) and isinstance(p, int) and same_size(known, p):
                yield bound
            else:
                self.miss(bound, f"expected the constant {p}, found a computed value ({g})", at=owner)
        elif _equal(p, g):
            yield bound
        else:
            self.miss(bound, f"expected {p}, found {g}", at=owner)

    def unify_scalar(self, p: Wild, g: Any, bound: Bound, owner: Node | None) -> Iterator[Bound]:
        if isinstance(g, Node) or is_symbol(g):
            self.miss(bound, f"{p.name} is computed in the graph ({g}); a {p.kind} is needed", at=owner)
        elif not p.accepts(g):
            self.miss(bound, f"{p.name} is {g!r}; a {p.kind} is needed", at=owner)
        elif p.name not in bound.scalars:
            yield replace(bound, scalars={**bound.scalars, p.name: g})
        elif _equal(bound.scalars[p.name], g):
            yield bound
        else:
            self.miss(bound, f"{p.name} is {bound.scalars[p.name]} in one place and {g} in another", at=owner)

    def unify_leaf(self, p: Node, g: Any, bound: Bound) -> Iterator[Bound]:
        name = self.pattern.leaves[p]
        if not isinstance(g, Node) or not isinstance(val(g), Tensor):
            self.miss(bound, f"{name} must be a tensor, found {g}")
        elif p in bound.nodes:
            if self.numbers.same(bound.nodes[p], g):
                yield bound
            else:
                self.miss(bound, f"{name} is {bound.nodes[p]} in one place and {g} in another", at=g)
        else:
            dims, found = self.pattern.dims[name], val(g)
            if not dims.any_rank and found.ndim != len(dims.names):
                self.miss(bound, f"{name} has {found.ndim} dims, {len(dims.names)} are expected", at=g)
            elif self.pattern.dtypes is not None and found.is_floating_point() and found.dtype not in self.pattern.dtypes:
                self.miss(bound, f"{name} is {found.dtype}, the pattern needs another dtype", at=g)
            else:
                yield bound.with_node(p, g)

    def unify_node(self, p: Node, g: Any, bound: Bound) -> Iterator[Bound]:
        if p in bound.nodes:
            if isinstance(g, Node) and self.numbers.same(bound.nodes[p], g):
                yield bound if g is bound.nodes[p] else replace(bound, copies=(*bound.copies, g))
            else:
                self.miss(bound, f"{label(p)} is needed twice as one value, found {bound.nodes[p]} and {g}", at=g)
        elif not isinstance(g, Node) or g.op != "call_function" or g.target is not p.target:
            self.miss(bound, f"expected {label(p)}, found {label(g) if isinstance(g, Node) else g}", at=g)
        elif self.numbers.region(g) != self.region:
            self.miss(bound, f"{label(g)} lies in another grad or autocast region", at=g)
        else:
            yield from self.unify_arguments(p, g, bound.with_node(p, g))

    def unify_arguments(self, p: Node, g: Node, bound: Bound) -> Iterator[Bound]:
        if not isinstance(p.target, OpOverload):
            yield from self.unify_list(p.args, g.args, bound, g)
            return
        wanted, given = arguments(p), arguments(g)
        if p.target in _BY_RESULT:
            bound = replace(bound, sizes=(*bound.sizes, (val(p).shape, val(g).shape)))
            yield from self.unify(wanted["self"], given["self"], bound, g)
            return
        yield from self.unify_list(list(wanted.values()), list(given.values()), bound, g)
        if p.target in COMMUTATIVE:
            given["self"], given["other"] = given["other"], given["self"]
            yield from self.unify_list(list(wanted.values()), list(given.values()), bound, g)

    def unify_list(self, p: Any, g: Any, bound: Bound, owner: Node | None) -> Iterator[Bound]:
        if not isinstance(g, list | tuple) or len(p) != len(g):
            self.miss(bound, f"expected {len(p)} values, found {g}", at=owner)
        elif not p:
            yield bound
        else:
            for first in self.unify(p[0], g[0], bound, owner):
                yield from self.unify_list(p[1:], g[1:], first, owner)


def _equal(a: Any, b: Any) -> bool:
    """Constants are equal by value; 1 and 1.0 are, True and 1 are not, nor are 0.0 and -0.0."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, float) and isinstance(b, float):
        return a.hex() == b.hex()
    return a == b
