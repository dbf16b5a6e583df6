"""The (query, key) pairs of one attention, and the sizes at which its mask is evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import sympy
import torch
from torch import SymInt, Tensor
from torch.fx import Node

from hfgraph.graph.evaluate import Sizes, evaluate, shape
from hfgraph.graph.trials import trials
from hfgraph.graph.values import val
from hfgraph.rewrites.attending.factors import Factor
from hfgraph.rewrites.attending.structure import Table

aten = torch.ops.aten
_LENGTHS = (3, 9, 24)
# Tables of up to this many pairs are evaluated whole; beyond, around the ends of windows only.
_MANY = 4200**2
# As traced they are all that counts: a larger table is worth its second.
_TRACED = 8400**2


class Pairs:
    """Pairs of `q` (..., Q, D) and `k` (..., K, D)."""

    def __init__(self, q: Node, k: Node) -> None:
        self.q = q
        self.k = k

    def count(self, sizes: Sizes) -> tuple[int, int]:
        """How many queries and keys there are."""
        return shape(self.q, sizes)[-2], shape(self.k, sizes)[-2]

    def many(self, sizes: Sizes) -> int:
        """How many pairs there are."""
        queries, keys = self.count(sizes)
        return queries * keys

    def table(self, condition: Tensor, sizes: Sizes) -> Tensor | None:
        """A condition's values as (queries, keys); None where they differ between sequences or heads."""
        queries, keys = self.count(sizes)
        flat = condition.expand(*condition.shape[:-2], queries, keys).reshape(-1, queries, keys)
        return flat[0] if bool((flat == flat[0]).all()) else None

    def trials(self, factors: Sequence[Factor]) -> list[Sizes]:
        """Sizes to try: as traced, small ones, and one beyond every whole number in the mask, for a window shows only past its size."""
        nodes = ancestors([f.node for f in factors])
        largest = _largest(nodes)
        lengths = [*_LENGTHS, *([largest + 5] if largest + 5 > max(_LENGTHS) else [])]
        traced, *others = (self._narrow(s) for s in trials([*nodes, self.q, self.k], lengths))
        return [*([traced] if self.many(traced) <= _TRACED else []), *(s for s in others if self.many(s) <= _MANY)]

    def _narrow(self, sizes: Sizes) -> Sizes:
        """Two sequences are enough, where their number is a size of its own."""
        batch = _symbol(val(self.q).shape[0]) if val(self.q).ndim > 3 else None
        lengths = {_symbol(s) for n in (self.q, self.k) for s in val(n).shape[-2:]}
        return {**sizes, batch: 2} if batch in sizes and batch not in lengths else sizes  # type: ignore[dict-item]

    def sampled(self, factors: Sequence[Factor]) -> list[Table]:
        """Windows too large for a whole table, seen at sampled positions: those count up from 0 in the graph, and others stand in for them."""
        nodes = ancestors([f.node for f in factors])
        w, length = _largest(nodes), _symbol(val(self.q).shape[-2])
        if length is None or length != _symbol(val(self.k).shape[-2]) or (w + 5) ** 2 <= _MANY:
            return []
        traced = next(iter(trials([*nodes, self.q, self.k], ())), {})
        positions = torch.tensor(sorted({*range(6), w // 2, *range(w - 3, w + 4), *range(2 * w - 2, 2 * w + 3), 3 * w}))
        sizes = self._narrow({**traced, length: len(positions)})
        given = {n: positions for n in nodes if _counts_up(n, length)}
        return [self._sample(factors, given, sizes, positions)]

    def _sample(self, factors: Sequence[Factor], given: Mapping[Node, Tensor], sizes: Sizes, positions: Tensor) -> Table:
        values = evaluate([f.node for f in factors], sizes, given)
        both = reduce(torch.logical_and, [v.logical_not() if f.negated else v.bool() for f, v in zip(factors, values, strict=True)])
        allowed = self.table(both, sizes)
        assert allowed is not None
        return Table(allowed, positions, positions, 0)


def ancestors(roots: Sequence[Node]) -> list[Node]:
    """What `roots` are computed from, themselves included, in graph order."""
    seen: set[Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.all_input_nodes)
    return sorted(seen)


def _largest(nodes: Sequence[Node]) -> int:
    """The largest whole number among the arguments of comparisons and arithmetic."""
    return max((abs(c) for c in _constants(nodes)), default=0)


def _constants(nodes: Sequence[Node]) -> Iterator[int]:
    for node in nodes:
        for value in (*node.args, *node.kwargs.values()) if node.op == "call_function" else ():
            if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**40:
                yield value


def _counts_up(node: Node, length: sympy.Symbol) -> bool:
    """`arange(length)`."""
    return node.target is aten.arange.default and _symbol(val(node).shape[0]) == length


def _symbol(value: Any) -> sympy.Symbol | None:
    expr = value.node.expr if isinstance(value, SymInt) else None
    return expr if isinstance(expr, sympy.Symbol) else None
