"""What a table of allowed (query, key) pairs is a table of: derived from its offsets, then proven on every entry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Table:
    """Evaluated pairs.

    Attributes:
        allowed: (queries, keys), True where a query may attend to a key.
        queries, keys: indices of rows and columns; all of them, or a sample.
        behind: how many more keys than queries there are.
        start: the position of the first query, where it was chosen.
    """

    allowed: Tensor
    queries: Tensor
    keys: Tensor
    behind: int
    start: int | None = None

    @staticmethod
    def whole(allowed: Tensor, start: int | None = None) -> Table:
        """All pairs."""
        queries, keys = allowed.shape
        return Table(allowed, torch.arange(queries), torch.arange(keys), keys - queries, start)


@dataclass(frozen=True)
class Structure:
    """Which keys a query may attend to by its position; see `attention` for the fields. Without an `offset` queries are
    the last positions, or begin where the table says."""

    left: int = -1
    right: int = -1
    chunk: int = 0
    offset: int | None = None

    def position(self, table: Table) -> int:
        """The position of query 0."""
        if self.offset is not None:
            return self.offset
        return table.behind if table.start is None else table.start

    def fits(self, table: Table) -> bool:
        return torch.equal(self.allowed(table), table.allowed)

    def allowed(self, table: Table) -> Tensor:
        """What the table would be."""
        position, key = table.queries[:, None] + self.position(table), table.keys
        allowed = torch.ones(table.allowed.shape, dtype=torch.bool)
        if self.right >= 0:
            allowed &= key <= position + self.right
        if self.left >= 0:
            allowed &= key >= position - self.left
        if self.chunk:
            allowed &= key // self.chunk == position // self.chunk
        return allowed

    @property
    def is_full(self) -> bool:
        return self.left < 0 and self.right < 0 and not self.chunk


def structure_of(tables: Sequence[Table]) -> Structure | str:
    """The structure that fits every one of some tables, or the first pair that fits none."""
    whole = next((s for s in _candidates(tables) if all(s.fits(t) for t in tables)), None)
    if whole is not None:
        return whole
    largest = max(tables, key=lambda t: t.allowed.numel())
    return first_difference(largest, _nearest(largest))


def first_difference(table: Table, structure: Structure) -> str:
    """The first pair that a structure gets wrong, in words."""
    wrong = (structure.allowed(table) != table.allowed).nonzero()
    query, key = wrong[0].tolist() if len(wrong) else (0, 0)
    seen = "allowed" if table.allowed[query, key] else "masked"
    shape = f"{table.allowed.shape[0]} x {table.allowed.shape[1]}"
    return f"query {int(table.queries[query])} and key {int(table.keys[key])} of {shape} are {seen}, which no window, chunk or causal mask explains"


def _candidates(tables: Sequence[Table]) -> list[Structure]:
    """Structures worth proving, the most usual reading first."""
    chosen = any(t.start is not None for t in tables)
    offsets = (None, *([] if chosen else _offsets(tables)))
    found = [s for offset in offsets if (s := _banded(tables, Structure(offset=offset))) is not None]
    chunk = _chunk(max(tables, key=lambda t: int(t.keys[-1]) if len(t.keys) else 0))
    return found + ([replace(s, chunk=chunk, left=-1) for s in (*found, Structure(right=0), Structure())] if chunk else [])


def _offsets(tables: Iterable[Table]) -> list[int]:
    """Positions of the first query that make a causal bound of the upper one."""
    return sorted({0} | {high for t in tables if (high := _bounds(t, 0)[1]) is not None})


def _banded(tables: Sequence[Table], at: Structure) -> Structure | None:
    """Bounds that are the same in all tables where they show, once queries stand where `at` says."""
    bounds = [_bounds(t, at.position(t)) for t in tables]
    lefts, rights = ({-b[0] for b in bounds if b[0] is not None}, {b[1] for b in bounds if b[1] is not None})
    if len(lefts) > 1 or len(rights) > 1 or any(n < 0 for n in lefts | rights):
        return None
    left, right = next(iter(lefts), -1), next(iter(rights), -1)
    return replace(at, left=left, right=right, offset=at.offset if left >= 0 or right >= 0 else None)


def _bounds(table: Table, position: int) -> tuple[int | None, int | None]:
    """The least and the greatest allowed key - query, each where one beyond it was seen."""
    distance = table.keys - (table.queries[:, None] + position)
    inside, seen = distance[table.allowed], set(distance.unique().tolist())
    if not len(inside):
        return None, None
    low, high = int(inside.min()), int(inside.max())
    return (low if low - 1 in seen else None), (high if high + 1 in seen else None)


def _chunk(table: Table) -> int:
    """The first query that no longer sees key 0, of as many queries as keys."""
    if table.behind or table.start or not len(table.keys) or int(table.keys[0]) != 0:
        return 0
    blind = (~table.allowed[:, 0]).nonzero()
    return int(table.queries[int(blind[0])]) if len(blind) else 0


def _nearest(table: Table) -> Structure:
    """The structure that explains most of a table, for the message that none explains all."""
    found = [*_candidates([table]), Structure(right=0), Structure()]
    return max(found, key=lambda s: int((s.allowed(table) == table.allowed).sum()))
