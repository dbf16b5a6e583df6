"""The (query, key) pairs of one attention, and the sizes at which its mask is evaluated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import sympy
import torch
from torch import SymInt, Tensor
from torch.fx import Node

from hfgraph.graph.evaluate import CannotEvaluate, Sizes, evaluate, shape
from hfgraph.graph.trials import trials
from hfgraph.graph.values import val
from hfgraph.rewrites.attending.factors import Factor
from hfgraph.rewrites.attending.structure import Table

aten = torch.ops.aten
_LENGTHS = (3, 9, 24)
# Their numbers are dims and shapes.
_NO_ARITHMETIC = frozenset(
    {aten.unsqueeze.default, aten.squeeze.dim, aten.permute.default, aten.expand.default, aten.reshape.default, aten.sym_size.int,
     aten.slice.Tensor, aten.select.int, aten.cumsum.default, aten.diff.default, aten.arange.default, aten.arange.start,
     aten.zeros.default, aten.ones.default, aten.empty.memory_format}
)  # fmt: skip
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

    def starts(self, factors: Sequence[Factor], sizes: Sizes) -> list[int]:
        """Positions to try for the first query: the first and the last ones, powers of two and the mask's own numbers, and those beside them."""
        queries, keys = self.count(sizes)
        marks = [*(2**i for i in range(keys.bit_length())), *_numbers(ancestors([f.node for f in factors])), keys - queries, keys]
        return sorted({0, *(m + d for m in marks for d in (-1, 0, 1) if 0 <= m + d <= keys)})

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
        """Sizes to try: as traced, small ones, and one beyond all numbers in the mask, for a window shows only past its size, and one that
        is taken in two steps past the product of both."""
        nodes = ancestors([f.node for f in factors])
        beyond = math.prod(_numbers(nodes)) + 5
        lengths = [*_LENGTHS, *([beyond] if beyond > max(_LENGTHS) else [])]
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
        numbers, length = _numbers(nodes), _symbol(val(self.q).shape[-2])
        if not any(_symbol(s) for n in (self.q, self.k) for s in val(n).shape[-2:]) or (math.prod(numbers) + 5) ** 2 <= _MANY:
            return []
        if len(numbers) > 1 or length is None or length != _symbol(val(self.k).shape[-2]):
            raise CannotEvaluate(f"its numbers ({', '.join(map(str, numbers))}) are too large to see what comes after them")
        (w,) = numbers
        traced = next(iter(trials([*nodes, self.q, self.k], ())), {})
        positions = torch.tensor(sorted({*range(6), w // 2, *range(w - 3, w + 4), *range(2 * w - 2, 2 * w + 3), 3 * w}))
        sizes = self._narrow({**traced, length: len(positions)})
        given = {n: positions for n in nodes if _counts_up(n, length)}
        return [self._sample(factors, given, sizes, positions)]

    def _sample(self, factors: Sequence[Factor], given: Mapping[Node, Tensor], sizes: Sizes, positions: Tensor) -> Table:
        allowed = self.table(conjunction(factors, given, sizes), sizes)
        assert allowed is not None
        return Table(allowed, positions, positions, 0)


def conjunction(factors: Sequence[Factor], given: Mapping[Node, Tensor], sizes: Sizes) -> Tensor:
    """All conditions at once, on chosen sizes and inputs."""
    values = evaluate([f.node for f in factors], sizes, given)
    return reduce(torch.logical_and, [v.logical_not() if f.negated else v.bool() for f, v in zip(factors, values, strict=True)])


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


def _numbers(nodes: Sequence[Node]) -> list[int]:
    """The distinct numbers in comparisons and arithmetic, and what they divide by where they are small, rounded up."""
    found = (a for n in nodes if n.op == "call_function" and n.target not in _NO_ARITHMETIC for a in (*n.args, *n.kwargs.values()))
    sizes = (abs(a) if abs(a) > 1 else 1 / abs(a) for a in found if isinstance(a, int | float) and not isinstance(a, bool) and a)
    return sorted({math.ceil(s) for s in sizes if 1 < s < 2**40})


def _counts_up(node: Node, length: sympy.Symbol) -> bool:
    """`arange(length)`."""
    return node.target is aten.arange.default and _symbol(val(node).shape[0]) == length


def _symbol(value: Any) -> sympy.Symbol | None:
    expr = value.node.expr if isinstance(value, SymInt) else None
    return expr if isinstance(expr, sympy.Symbol) else None
