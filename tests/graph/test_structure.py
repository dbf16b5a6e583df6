"""Structures are derived from tables of pairs, and proven on every pair."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfgraph.rewrites.attending.structure import Structure, Table, structure_of

SIZES = ((1, 1), (3, 3), (9, 9), (24, 24), (31, 31))


def tables(structure: Structure, sizes: tuple[tuple[int, int], ...] = SIZES) -> list[Table]:
    blanks = [Table.whole(torch.ones(s, dtype=torch.bool)) for s in sizes]
    return [Table.whole(structure.allowed(b)) for b in blanks]


structures = st.builds(
    Structure,
    left=st.integers(-1, 20),
    right=st.sampled_from([-1, 0, 0, 2, 7]),
    chunk=st.sampled_from([0, 0, 4, 7]),
)


@given(structures)
def test_what_is_found_gives_the_same_pairs(structure: Structure) -> None:
    made = tables(structure)
    found = structure_of(made)
    if isinstance(found, str):  # a chunk with a window inside it is no structure that models have
        assert structure.chunk and (structure.left >= 0 or structure.right > 0)
    else:
        assert all(found.fits(t) for t in made)


@given(structures, st.integers(0, 30), st.integers(0, 30))
def test_one_pair_more_or_less_is_noticed(structure: Structure, query: int, key: int) -> None:
    """Whatever is found fits every pair, the changed one among them."""
    made = tables(structure)
    made[-1].allowed[query, key] ^= True
    found = structure_of(made)
    assert isinstance(found, str) or all(found.fits(t) for t in made)


@pytest.mark.parametrize(
    ("structure", "sizes"),
    [
        (Structure(right=0), ((4, 9), (1, 7))),
        (Structure(right=0, offset=0), ((4, 9), (7, 20))),
        (Structure(left=7, right=0), ((12, 30), (1, 30))),
        (Structure(left=3, right=3), ((9, 9), (20, 20))),
        (Structure(right=0, chunk=8), SIZES),
        (Structure(), SIZES),
    ],
)
def test_it_is_read_off(structure: Structure, sizes: tuple[tuple[int, int], ...]) -> None:
    assert structure_of(tables(structure, sizes)) == structure


def test_a_window_that_no_table_reaches_is_not_seen() -> None:
    """That is why masks are evaluated beyond every number in them."""
    assert structure_of(tables(Structure(left=40, right=0))) == Structure(right=0)


def test_a_start_that_was_chosen_is_where_queries_begin() -> None:
    made = []
    for start in (0, 3):
        blank = Table.whole(torch.ones(4, 16, dtype=torch.bool), start)
        made.append(Table.whole(Structure(right=0).allowed(blank), start))
    assert structure_of(made) == Structure(right=0)


def test_the_first_pair_that_differs_is_named() -> None:
    (made,) = tables(Structure(right=0), ((9, 9),))
    made.allowed[4, 8] = True
    assert structure_of([made]) == "query 4 and key 8 of 9 x 9 are allowed, which no window, chunk or causal mask explains"


def test_sampled_positions_show_large_windows() -> None:
    w = 8192
    positions = torch.tensor(sorted({*range(6), *range(w - 3, w + 4), *range(2 * w - 2, 2 * w + 3), 3 * w}))
    blank = Table(torch.ones(len(positions), len(positions), dtype=torch.bool), positions, positions, 0)
    for structure in (Structure(left=w - 1, right=0), Structure(right=0, chunk=w)):
        seen = Table(structure.allowed(blank), positions, positions, 0)
        assert structure_of([seen, *tables(Structure(right=0))]) == structure
