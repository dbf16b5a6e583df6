"""Sequences packed into one: pairs attend where two entries of one tensor are equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from hfgraph.graph.evaluate import CannotEvaluate, evaluate, shape
from hfgraph.graph.values import val
from hfgraph.rewrites.attending.factors import Factor
from hfgraph.rewrites.attending.pairs import Pairs
from hfgraph.rewrites.attending.reach import arithmetic, below
from hfgraph.rewrites.attending.structure import Structure, Table

aten = torch.ops.aten


def segments_of(factor: Factor, pairs: Pairs) -> Node | None:
    """The (B, K) tensor of whole numbers whose equality a factor is, or None."""
    node = factor.node
    if factor.negated or node.target is not aten.eq.Tensor:
        return None
    sides = [a.args[0] if isinstance(a, Node) and a.target is aten.index.Tensor else None for a in node.args[:2]]
    source = sides[0]
    if not isinstance(source, Node) or source is not sides[1] or val(source).ndim != 2 or val(source).is_floating_point():
        return None
    try:
        for sizes in pairs.trials([factor], [source]):
            values = torch.randint(0, 3, shape(source, sizes), generator=torch.Generator().manual_seed(1)).to(val(source).dtype)
            (got,) = evaluate([node], sizes, {source: values})
            if not torch.equal(got, _equal_pairs(values)):
                return None
    except CannotEvaluate:
        return None
    return source


def states_the_same(implied: Sequence[Factor], source: Node, structure: Structure, known: Structure, pairs: Pairs, inputs: frozenset[Node]) -> bool:
    """Whether `implied`, with segments and what is `known`, allows the pairs that `structure` and segments allow: positions that
    count up within each segment say no more than its order does."""
    given_by = next(iter(inputs)) if len(inputs) == 1 else None
    if given_by is None or val(given_by).is_floating_point() or arithmetic(below([source, *(f.node for f in implied)], [given_by])):
        return False  # numbers may say something of positions that are not drawn
    try:
        for sizes in pairs.trials([*implied, Factor(source)], [given_by]):
            for values in _draws(shape(given_by, sizes)):
                given = {given_by: values.to(val(given_by).dtype)}
                segments, *conditions = evaluate([source, *(f.node for f in implied)], sizes, given)
                here = _equal_pairs(segments)
                blank = Table.whole(torch.ones(pairs.count(sizes), dtype=torch.bool))
                stated = here & known.allowed(blank)
                for factor, condition in zip(implied, conditions, strict=True):
                    stated = stated & (condition.logical_not() if factor.negated else condition)
                if not torch.equal(stated, here & structure.allowed(blank)):
                    return False
    except CannotEvaluate:
        return False
    return True


def _equal_pairs(values: Tensor) -> Tensor:
    return values[:, None, :, None] == values[:, None, None, :]


def _draws(size: tuple[int, ...]) -> Iterator[Tensor]:
    """Positions as they may come: counting up, packed, constant, backwards, any; and what stands for none."""
    rows, length = size[0], size[-1]
    count = torch.arange(length).expand(rows, length)
    yield count
    yield torch.zeros(size, dtype=torch.long)
    yield count.flip(-1)
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        cut = torch.randint(0, length, (rows, 1), generator=generator)
        yield torch.where(count < cut, count, count - cut)
        yield torch.randint(0, length, size, generator=generator)
        yield torch.randint(-length, 3 * length, size, generator=generator)
