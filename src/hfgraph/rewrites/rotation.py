"""Reads off a linear region which rotation it is, on numbers: the region is evaluated, and how it is spelled does not matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from hfgraph.graph.evaluate import Sizes, run, wider
from hfgraph.graph.values import is_symbol, val
from hfgraph.kernels.rotate import rotate
from hfgraph.rewrites.linear import Region

_DRAWS = 2


@dataclass(frozen=True)
class Rotation:
    """What a region does: attributes of `rotate`, and which of its tables is which. A complex table is both."""

    attributes: tuple[tuple[str, Any], ...]
    cos: int
    sin: int


def rotation(region: Region) -> Rotation | str | None:
    """The rotation that a region computes, proven on random numbers; the reason why it is none, in words, where it does
    turn pairs of values; None where it is something else."""
    if not 1 <= len(region.tables) <= 2 or (len(region.tables) == 1 and not val(region.tables[0]).is_complex()):
        return None
    trials = [_Trial(region, times) for times in ((1, 2) if is_symbol(val(region.x).shape[-1]) else (1,))]
    try:
        read = [_read(trial) for trial in trials]
        if any(r != read[0] for r in read):
            return "how its values pair depends on a size that is not known while compiling"
        found = read[0]
        return next((p for t in trials if isinstance(p := _proven(t, found), str)), found) if isinstance(found, Rotation) else found
    except (RuntimeError, ValueError, IndexError):  # shapes that do not fit together at small sizes, or not as a rotation's do
        return None


class _Trial:
    """A region that can be run at small sizes."""

    def __init__(self, region: Region, times: int) -> None:
        self.region = region
        self.sizes = Sizes(region.nodes, (region.x, *region.tables), times)
        self.width: int = self.sizes(val(region.x).shape[-1])
        self.is_complex = len(region.tables) == 1

    def __call__(self, x: Tensor, tables: Sequence[Tensor], widen: Any = lambda a: a) -> Tensor:
        known: dict[Node, Any] = {region_table: tables[self.region.tables.index(s)] for region_table, s in self.region.same.items()}
        out = run(self.region.nodes, {**known, self.region.x: x}, self.sizes, widen)[self.region.end]
        if tuple(out.shape) != self.sizes.shape(self.region.end):
            raise ValueError("the small sizes do not fit together")
        return out

    def meaning(self, cos: float, sin: float) -> Tensor:
        """One row of the result in float64, where x is 1, 2, 3, ... and each table is one number."""
        x = torch.arange(1.0, self.width + 1, dtype=torch.float64).expand(self.sizes.shape(self.region.x))
        shapes = [self.sizes.shape(t) for t in self.region.tables]
        filled = [complex(cos, sin)] if self.is_complex else [cos, sin]
        tables = [torch.full(s, f, dtype=torch.complex128 if self.is_complex else torch.float64) for s, f in zip(shapes, filled, strict=True)]
        rows = self(x, tables, wider).reshape(-1, self.width)
        if not torch.equal(rows, rows[:1].expand(rows.shape)):
            raise ValueError("rows differ")
        return rows[0].to(torch.int64)


def _read(trial: _Trial) -> Rotation | str | None:
    """Which values pair, from what each table lets through."""
    first, second, none = trial.meaning(1, 0), trial.meaning(0, 1), trial.meaning(0, 0)
    turned = [i for i in range(trial.width) if none[i] == 0]
    start, width = (turned[0], len(turned)) if turned else (0, 0)
    passes = all(none[i] == i + 1 for i in range(trial.width) if i not in turned)
    if width < 2 or width % 2 or turned != list(range(start, start + width)) or not passes or bool((first * second == 0)[turned].any()):
        return None
    swapped = bool((first[turned] < 0).any())
    direct, across = (second, first) if swapped else (first, second)
    direct, across = direct[turned] - 1 - start, across[turned]
    partner, sign = across.abs() - 1 - start, across.sign()
    if bool((direct < 0).any()) or bool((direct == partner).any()):
        return None
    layout = _layout(direct.tolist(), partner.tolist(), sign.tolist(), neighbours_first=trial.is_complex)
    if layout is None:
        return "its values pair in a way that is no rotation of halves or neighbours"
    if 0 < start != trial.width - width:
        return f"it turns {width} of {trial.width} values in the middle"
    cos, sin = (0, 0) if trial.is_complex else (1, 0) if swapped else (0, 1)
    tables = val(trial.region.tables[cos]).shape[-1] * (2 if trial.is_complex else 1)
    half = int(trial.is_complex or trial.sizes(tables) * 2 == width)
    attributes = {"half": half, "tail": int(start > 0), **layout, "complex_product": int(trial.is_complex), **_dtypes(trial.region)}
    return Rotation(tuple(attributes.items()), cos, sin)


def _layout(direct: list[int], partner: list[int], sign: list[int], neighbours_first: bool) -> dict[str, int] | None:
    """How pairs lie before and after, and which way they turn."""
    width, middle = len(direct), len(direct) // 2
    halves, neighbours = list(range(width)), [2 * i for i in range(middle)] + [2 * i + 1 for i in range(middle)]
    spread = [(i % 2) * middle + i // 2 for i in range(width)]
    expected = {(0, 0): halves, (1, 1): halves, (1, 0): neighbours, (0, 1): spread}
    for (before, after), order in sorted(expected.items(), reverse=neighbours_first):
        across = [i ^ 1 if before else (i + middle) % width for i in order]
        first = [i % 2 == 0 if before else i < middle for i in order]
        for reverse in (0, 1):
            turn = [(-1 if f else 1) * (-1 if reverse else 1) for f in first]
            if (direct, partner, sign) == (order, across, turn):
                return {"interleaved": before, "interleaved_out": after, "reverse": reverse}
    return None


def _dtypes(region: Region) -> dict[str, torch.dtype | None]:
    """Where a region casts: what is multiplied, and what is left in the end."""
    product = next(n for n in region.nodes if n.target is torch.ops.aten.mul.Tensor)
    factor = next(a for a in product.all_input_nodes if a not in region.same)
    x, table, multiplied = val(region.x).dtype, _real(val(next(iter(region.tables))).dtype), _real(val(factor).dtype)
    compute = multiplied if multiplied != x else None
    rotated, end = torch.promote_types(multiplied, table), val(region.end).dtype
    return {"compute_dtype": compute, "out_dtype": end if end != rotated else None}


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def _proven(trial: _Trial, read: Rotation) -> str | None:
    """Nothing, if the rotation gives bit for bit what the region gives, in the region's own dtypes, on random values and
    independent tables; else how it differs."""
    for seed in range(_DRAWS):
        generator = torch.Generator().manual_seed(seed)
        x, *tables = (_drawn(trial.sizes.shape(n), val(n).dtype, generator) for n in (trial.region.x, *trial.region.tables))
        wanted = trial(x, tables)
        got = rotate.reference(x, *parts(read, tables), **dict(read.attributes))
        if got.dtype != wanted.dtype or got.shape != wanted.shape or not torch.equal(got, wanted):
            off = (got.double() - wanted.double()).abs().max().item() if got.shape == wanted.shape else float("nan")
            return f"it turns pairs, but rounds or scales in a way that the op does not ({off:.2g} off on random values)"
    return None


def _drawn(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=generator, dtype=wide).to(dtype)


def parts(read: Rotation, tables: Sequence[Any]) -> tuple[Any, Any]:
    """The tables of cosines and sines among a region's."""
    if read.cos == read.sin:
        both = torch.view_as_real(tables[0])
        return both[..., 0], both[..., 1]
    return tables[read.cos], tables[read.sin]
