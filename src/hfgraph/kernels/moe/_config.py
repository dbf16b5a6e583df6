"""How the products of experts are cut. Not tuned: no timing has been taken on a GPU yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

GROUP = 8  # tiles of rows that meet the same columns of a matrix one after the other, while these are in the cache


@dataclass(frozen=True)
class Config:
    """A tile of rows and of `columns` rows of a matrix, for elements of `size` bytes, with `depth` elements of each at a time.

    Where memory is not regular each element has an address of its own, for which only `irregular` tiles leave registers.
    """

    size: int
    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int
    irregular: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Triton's own; `tl.dot` multiplies and adds at once all the same, and what follows rounds where the reference does."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": False}

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.columns}x{self.depth}-{8 * self.size}bits-{self.num_warps}warps"

    def width(self, gated: bool) -> int:
        """Columns of a result: gates and what they gate share those of a tile."""
        return self.columns // 2 if gated else self.columns

    def constants(self, gated: bool) -> dict[str, int]:
        """The kernels' own."""
        return {"ROWS": self.rows, "COLUMNS": self.width(gated), "DEPTH": self.depth, "GROUP": GROUP}

    def tiles(self, pairs: int, experts: int) -> int:
        """As many tiles of rows as any choice of experts may need: each expert that has rows fills all of its tiles but the last."""
        busy = min(pairs, experts)
        return busy + (pairs - busy) // self.rows


# Few rows to an expert, as in decoding: its matrices are read once, and that is all there is to do. Products of float32 are exact, without tensor cores.
CONFIGS = (
    Config(2, 16, 64, 64, 4, 4, irregular=True),
    Config(2, 64, 128, 64, 4, 3),
    Config(2, 128, 128, 64, 8, 3),
    Config(4, 16, 32, 32, 4, 2, irregular=True),
    Config(4, 64, 64, 16, 8, 2),
)


def config_for(pairs: int, experts: int, size: int, regular: bool) -> Config:
    """The smallest tile that holds an expert's rows where all have as many, else the largest; where memory is not `regular` only some can be."""
    fitting = [c for c in CONFIGS if c.size == size and (regular or c.irregular)]
    return next((c for c in fitting if pairs <= c.rows * experts), fitting[-1])


def is_regular(matrix: Tensor) -> bool:
    """Rows or columns lie side by side, and begin at multiples of 16 elements."""
    begins = (*(n for n in matrix.stride() if n != 1), matrix.storage_offset())
    return 1 in matrix.stride()[-2:] and all(n % 16 == 0 for n in begins)
