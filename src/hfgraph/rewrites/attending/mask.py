"""What a mask says: its positional part becomes a structure, proven by evaluation; what depends on data stays a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from hfgraph.graph.evaluate import CannotEvaluate, Sizes, data
from hfgraph.graph.recogniser import View
from hfgraph.graph.values import same_size, val
from hfgraph.rewrites.attending.factors import Factor, Parts
from hfgraph.rewrites.attending.pairs import Pairs, conjunction
from hfgraph.rewrites.attending.reach import below
from hfgraph.rewrites.attending.segments import segments_of, states_the_same
from hfgraph.rewrites.attending.structure import Structure, Table, structure_of


@dataclass(frozen=True)
class Masking:
    """What stands between the scores and their softmax.

    Attributes:
        structure: which keys a query may attend to by its position.
        factors: the conditions that no structure says; they stay tensors.
        start: the input that holds the position of the first query, if only the run knows it.
        reader: the first node that reads `start`, whose value counts there.
        segments: the (B, K) tensor whose equal entries attend to each other.
        reason: why a positional mask has no structure.
    """

    structure: Structure = Structure()  # noqa: RUF009  (frozen)
    factors: tuple[Factor, ...] = ()
    start: Node | None = None
    reader: Node | None = None
    segments: Node | None = None
    reason: str = ""


def read_mask(parts: Parts, q: Node, k: Node, view: View) -> Masking:
    """The structure of a mask over the pairs of `q` (..., Q, D) and `k` (..., K, D)."""
    key: Any = ("mask", tuple(parts.factors), str(val(q).shape[-2]), str(val(k).shape[-2]), val(q).ndim)
    if key not in view.memo:
        view.memo[key] = _Reader(view, Pairs(q, k)).read(parts.factors)
    return view.memo[key]


class _Reader:
    """Reads one mask."""

    def __init__(self, view: View, pairs: Pairs) -> None:
        self.view = view
        self.pairs = pairs
        self.known: dict[Node, frozenset[Node]] = {}

    def read(self, factors: Sequence[Factor]) -> Masking:
        positional = [f for f in factors if not data(f.node, self.known)]
        dependent = tuple(f for f in factors if data(f.node, self.known))
        found = self.structure(positional) if positional else Structure()
        if isinstance(found, str):
            return Masking(factors=(*positional, *dependent), reason=found)
        return self.with_segments(self.with_start(Masking(found, dependent)))

    def structure(self, factors: Sequence[Factor], counter: Node | None = None) -> Structure | str:
        """The structure of some factors together, or why they have none.

        Args:
            counter: an input that holds the position of the first query; many are tried for it.
        """
        tables = []
        try:
            large = counter is None and self.pairs.is_large(factors)
            given = () if counter is None else (counter,)
            for sizes in self.pairs.few(factors) if large else self.pairs.trials(factors, given):
                for start in (None,) if counter is None else self.pairs.starts(factors, sizes):
                    chosen = {} if counter is None or start is None else {counter: torch.full(val(counter).shape, start, dtype=val(counter).dtype)}
                    table = self.table(factors, chosen, sizes, start)
                    if table is None:
                        return "the mask differs between sequences or heads"
                    tables.append(table)
            tables += [self.pairs.sampled(factors)] if large else []
        except CannotEvaluate as e:
            return str(e)
        return structure_of(tables) if tables else "no sizes are known to try it on"

    def table(self, factors: Sequence[Factor], given: Mapping[Node, Tensor], sizes: Sizes, start: int | None) -> Table | None:
        allowed = self.pairs.table(conjunction(factors, given, sizes), sizes)
        return None if allowed is None else Table.whole(allowed, start)

    # --- parts that depend on data and still have a structure

    def with_start(self, masking: Masking) -> Masking:
        """Factors of position and of one number: how many keys came before (a static cache)."""
        mine = [f for f in masking.factors if self.counter(f) is not None]
        counters = {self.counter(f) for f in mine}
        counter = next(iter(counters), None)
        if counter is None or len(counters) > 1 or not masking.structure.is_full:
            return masking
        found = self.structure(mine, counter)
        readers = [n for n in below([f.node for f in mine]) if counter in n.all_input_nodes]
        if isinstance(found, str) or any(w < max(readers) for w in self.view.aliases.writes([counter])):
            return masking
        rest = tuple(f for f in masking.factors if f not in mine)
        return replace(masking, structure=found, factors=rest, start=counter, reader=min(readers))

    def counter(self, factor: Factor) -> Node | None:
        """The one whole number that a factor depends on besides positions."""
        found = data(factor.node, self.known)
        only = next(iter(found)) if len(found) == 1 else None
        if only is None or val(only).dtype not in (torch.int64, torch.int32):
            return None
        return only if all(same_size(s, 1) for s in val(only).shape) else None

    def with_segments(self, masking: Masking) -> Masking:
        """Pairs whose entries of one (B, K) tensor are equal: several sequences packed into one."""
        source = next((s for f in masking.factors if (s := segments_of(f, self.pairs)) is not None), None)
        if source is None or masking.start is not None:
            return masking
        others = tuple(f for f in masking.factors if segments_of(f, self.pairs) is not source)
        implied = [f for f in others if data(f.node, self.known) <= data(source, self.known)]
        structure = Structure(right=0) if masking.structure.is_full else masking.structure
        if implied and states_the_same(implied, source, structure, masking.structure, self.pairs, data(source, self.known)):
            rest = tuple(f for f in others if f not in implied)
            return replace(masking, structure=structure, factors=rest, segments=source)
        return replace(masking, factors=others, segments=source)
