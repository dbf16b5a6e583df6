"""How the attention kernels are cut. Not tuned: no timing has been taken on a GPU yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton

FUSED = {"enable_fp_fusion": True}  # sums of products need no rounding in between
COLUMNS = 64  # of a row, in one program of `gather`
FEW = 64  # rows up to which the keys are split among programs
PROGRAMS = 256  # one or two on each multiprocessor of a large GPU
MOST_PARTS = 64


def block(size: int) -> int:
    """A power of two that holds `size`; `tl.dot` asks for 16 at least."""
    return max(16, triton.next_power_of_2(size))


@dataclass(frozen=True)
class Config:
    """A tile of rows and keys, for elements of `size` bytes and heads of at most `width`; `laden`: it has a mask or a bias to load, too."""

    size: int
    width: int
    laden: bool
    rows: int
    keys: int
    num_warps: int
    num_stages: int = 2

    @property
    def options(self) -> dict[str, Any]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, **FUSED}

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.keys}x{self.width}-{8 * self.size}bits-{self.num_warps}warps{'-laden' if self.laden else ''}"

    def constants(self, width: int, v_width: int) -> dict[str, Any]:
        """The kernels' own, for heads of these widths."""
        return {"ROWS": self.rows, "KEYS": self.keys, "BLOCK": block(width), "V_BLOCK": block(v_width)}


# As large as registers allow on every GPU that the tests compile for. Products of float32 are exact, without tensor cores.
CONFIGS = (
    Config(2, 64, False, 16, 64, 4),
    Config(2, 64, False, 64, 64, 8),
    Config(2, 64, False, 128, 64, 8),
    Config(2, 64, True, 16, 32, 4),
    Config(2, 64, True, 64, 32, 8),
    Config(2, 128, False, 16, 64, 4),
    Config(2, 128, False, 64, 64, 8),
    Config(2, 128, False, 128, 32, 8),
    Config(2, 128, True, 16, 32, 4),
    Config(2, 128, True, 32, 32, 8),
    Config(2, 256, False, 16, 32, 4),
    Config(2, 256, False, 64, 32, 8),
    Config(2, 256, True, 16, 16, 4),
    Config(4, 64, False, 16, 32, 4),
    Config(4, 64, False, 64, 32, 8),
    Config(4, 64, True, 16, 32, 4),
    Config(4, 64, True, 32, 16, 8),
    Config(4, 128, False, 16, 16, 4),
    Config(4, 128, False, 32, 32, 8),
    Config(4, 128, True, 16, 16, 4),
    Config(4, 256, False, 32, 16, 8),
    Config(4, 256, True, 32, 16, 8),
)


def config_for(rows: int, width: int, size: int, laden: bool) -> Config:
    """The smallest tile that holds all rows, else the largest."""
    fitting = [c for c in CONFIGS if (c.size, c.width, c.laden) == (size, max(64, block(width)), laden)]
    return next((c for c in fitting if rows <= c.rows), fitting[-1])


def parts(tiles: int, config: Config, constants: Mapping[str, Any], numbers: Mapping[str, Any]) -> int:
    """Among how many programs the keys of one tile are split; 1 for many rows. Only what the host knows counts: equal calls, equal sums."""
    if numbers["queries"] * numbers["group"] > FEW:
        return 1
    reach = numbers["keys"]
    if min(constants["LEFT"], constants["RIGHT"]) >= 0 and not constants["EVERY"]:
        reach = min(reach, constants["LEFT"] + constants["RIGHT"] + numbers["queries"])
    if constants["CHUNK"] and not constants["EVERY"]:
        reach = min(reach, constants["CHUNK"] + numbers["queries"])
    return max(1, min(PROGRAMS // tiles, reach // (2 * config.keys), MOST_PARTS))
