"""The (query, key) pairs of one attention, and the sizes at which its mask is evaluated."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from typing import Any

import sympy
import torch
from torch import SymInt, Tensor
from torch.fx import Node

from hfgraph.graph.evaluate import CannotEvaluate, Sizes, evaluate, shape, symbols
from hfgraph.graph.trials import nearest, trials
from hfgraph.graph.unify import label
from hfgraph.graph.values import arguments, is_symbol, val
from hfgraph.rewrites.attending.factors import Factor
from hfgraph.rewrites.attending.reach import ALONG, BY_ELEMENT, COUNTED, FILLED, VIEWS, arithmetic, below, beyond, reach
from hfgraph.rewrites.attending.structure import Table

aten = torch.ops.aten
_LENGTHS = (3, 9, 24)
# Tables of up to this many pairs are evaluated whole; beyond, around the ends of windows only.
_MANY = 4200**2
# As traced they are all that counts: a larger table is worth its second.
_TRACED = 8400**2
_MOST_TIMES = 6  # that a number goes into a mask that is seen at sampled positions


class Pairs:
    """Pairs of `q` (..., Q, D) and `k` (..., K, D)."""

    def __init__(self, q: Node, k: Node) -> None:
        self.q = q
        self.k = k

    def count(self, sizes: Sizes) -> tuple[int, int]:
        """How many queries and keys there are."""
        return shape(self.q, sizes)[-2], shape(self.k, sizes)[-2]

    def starts(self, factors: Sequence[Factor], sizes: Sizes) -> list[int]:
        """Positions to try for the first query: the first and the last ones, powers of two, the mask's own numbers, also past all keys, and those
        beside them."""
        queries, keys = self.count(sizes)
        numbers = arithmetic(below([f.node for f in factors]))
        marks = [*(2**i for i in range(keys.bit_length())), *numbers, keys - queries, keys, *(n + keys for n in numbers)]
        return sorted({0, *(m + d for m in marks for d in (-1, 0, 1) if m + d >= 0)})

    def many(self, sizes: Sizes) -> int:
        """How many pairs there are, in two sequences at a time."""
        queries, keys = self.count(sizes)
        batch = self._batch
        return queries * keys * max(sizes.get(batch, 2) // 2 if batch is not None else 1, 1)

    def table(self, condition: Tensor, sizes: Sizes) -> Tensor | None:
        """A condition's values as (queries, keys); None where they differ between sequences or heads."""
        queries, keys = self.count(sizes)
        flat = condition.expand(*condition.shape[:-2], queries, keys).reshape(math.prod(condition.shape[:-2]), queries, keys)
        return flat[0] if len(flat) and bool((flat == flat[:1]).all()) else None

    def trials(self, factors: Sequence[Factor], given: Collection[Node] = ()) -> list[Sizes]:
        """Sizes that say all: as traced, small ones, and where there are symbols one past all that the mask's numbers reach to.

        Args:
            given: nodes that get values of their own.

        Raises:
            CannotEvaluate: that would be too large, no guard admits it, or nothing says where the mask changes.
        """
        found = self.few(factors)
        if self._has_lengths(factors):
            past = beyond(reach([f.node for f in factors], given))
            far = nearest(self._nodes(factors), past) if past**2 <= _MANY else None
            if far is None or self.many(far := self._narrow(far, factors)) > _MANY:
                raise CannotEvaluate("its numbers are too large to see what comes after them")
            found.append(far)
        return found

    def few(self, factors: Sequence[Factor]) -> list[Sizes]:
        """Sizes as traced, and small ones."""
        traced, *others = (self._narrow(s, factors) for s in trials(self._nodes(factors), _LENGTHS))
        return [*([traced] if self.many(traced) <= _TRACED else []), *(s for s in others if self.many(s) <= _MANY)]

    def _nodes(self, factors: Sequence[Factor]) -> list[Node]:
        """All whose sizes must be known: also what only lends its shape."""
        return [*below([f.node for f in factors], inputs=lambda n: n.all_input_nodes), self.q, self.k]

    def _has_lengths(self, factors: Sequence[Factor]) -> bool:
        """Whether more is a symbol than the number of sequences."""
        return any(s != self._batch for s in symbols(self._nodes(factors)))

    @property
    def _batch(self) -> sympy.Symbol | None:
        """The number of sequences, where it is a size of its own."""
        batch = _symbol(val(self.q).shape[0]) if val(self.q).ndim > 3 else None
        return None if batch in {_symbol(s) for n in (self.q, self.k) for s in val(n).shape[-2:]} else batch

    def _narrow(self, sizes: Sizes, factors: Sequence[Factor]) -> Sizes:
        """Two sequences are enough, where no mask asks which one it is."""
        batch = self._batch
        asked = batch is None or batch not in sizes or any(_asks_for(batch, n) for n in below([f.node for f in factors]))
        return sizes if asked else {**sizes, batch: 2}  # type: ignore[dict-item]

    def is_large(self, factors: Sequence[Factor]) -> bool:
        """Whether only a sample of the pairs shows what comes past the mask's numbers."""
        return self._has_lengths(factors) and beyond(reach([f.node for f in factors])) ** 2 > _MANY

    def sampled(self, factors: Sequence[Factor]) -> Table:
        """A window too large for a whole table, seen at sampled positions: those count up in the graph, and others stand in for them."""
        nodes = below([f.node for f in factors])
        times, length = reach([f.node for f in factors]), _symbol(val(self.q).shape[-2])
        numbers = sorted(n for n in times if n > 1)
        if len(numbers) != 1 or times[numbers[0]] > _MOST_TIMES or length is None or length != _symbol(val(self.k).shape[-2]):
            raise CannotEvaluate(f"its numbers ({', '.join(map(str, numbers))}) are too large to see what comes after them")
        (w,) = numbers
        beside, several = 3 + times[1], times[w] + 3
        positions = torch.tensor(sorted({w // 2, *(k * w + d for k in range(several) for d in range(-beside, beside + 1) if k * w + d >= 0)}))
        traced = next(iter(trials(self._nodes(factors), ())), {})
        sizes = self._narrow({**traced, length: len(positions)}, factors)
        allowed = self.table(conjunction(factors, _sample(nodes, length, positions), sizes), sizes)
        assert allowed is not None
        return Table(allowed, positions, positions, 0)


def _sample(nodes: Sequence[Node], length: sympy.Symbol, positions: Tensor) -> dict[Node, Tensor]:
    """Positions in place of all that counts them.

    Raises:
        CannotEvaluate: something else depends on how many there are.
    """
    given = {n: positions.to(val(n).dtype) for n in nodes if _counts_up(n, length)}
    for node in nodes:
        by_position = node in given or node.target in VIEWS | FILLED | BY_ELEMENT or length not in symbols([node])
        if not by_position or (node.target in BY_ELEMENT and any(is_symbol(val(i)) for i in node.all_input_nodes)):
            raise CannotEvaluate(f"its numbers are too large, and {label(node)} does not let other positions stand in for all of them")
    return given


def conjunction(factors: Sequence[Factor], given: Mapping[Node, Tensor], sizes: Sizes) -> Tensor:
    """All conditions at once, on chosen sizes and inputs."""
    values = evaluate([f.node for f in factors], sizes, given)
    return reduce(torch.logical_and, [v.logical_not() if f.negated else v.bool() for f, v in zip(factors, values, strict=True)])


def _asks_for(batch: sympy.Symbol, node: Node) -> bool:
    """The number of sequences goes into a node's values."""
    operands = [n for n in node.all_input_nodes if is_symbol(val(n))]
    counts = node.target in ALONG and batch in symbols([node])
    return counts or (node.target not in VIEWS | FILLED and batch in symbols(operands))


def _counts_up(node: Node, length: sympy.Symbol) -> bool:
    """`arange(length)`, from zero in steps of one."""
    if node.target not in COUNTED or _symbol(val(node).shape[0]) != length:
        return False
    given = arguments(node)
    return given.get("start", 0) == 0 and given.get("step", 1) == 1


def _symbol(value: Any) -> sympy.Symbol | None:
    expr = value.node.expr if isinstance(value, SymInt) else None
    return expr if isinstance(expr, sympy.Symbol) else None
