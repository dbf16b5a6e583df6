"""What Triton kernels that normalise whole rows share: finding rows through strides, loads and stores that round, and how launches are cut.

One program takes a few whole rows. Where a row fits in registers it is read once; wider rows are read block by block, more than once. Rows
are found through strides, so views cut from fused projections and transposed views need no copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hfgraph.kernels.floats import TYPES, narrow, rounded, widen
from hfgraph.kernels.launch import Launch
from hfgraph.kernels.strides import Rows


@triton.jit
def rows_of(tensor, row, size1, size2, stride0, stride1, stride2):
    """Where each row begins in a tensor whose leading dims are (any, size1, size2); None stays None."""
    if tensor is not None:
        outer = row // size2
        # A row number fits 32 bits, where division is cheap; an offset may not.
        tensor += (outer // size1).to(tl.int64) * stride0 + (outer % size1).to(tl.int64) * stride1 + (row % size2).to(tl.int64) * stride2
    return tensor


@triton.jit
def summed(x, residual, column, x_step, r_step, live, MULTIPLIER: tl.constexpr):
    """x, or ``x * MULTIPLIER + residual`` rounded to x's dtype twice, in float32: x and residual point at rows (R, 1), `column` is (1, D)."""
    h = widen(tl.load(x + column * x_step, mask=live, other=0.0))
    if MULTIPLIER != 1.0:
        h = rounded(h * MULTIPLIER, x.dtype.element_ty)
    if residual is not None:
        h = rounded(h + widen(tl.load(residual + column * r_step, mask=live, other=0.0)), x.dtype.element_ty)
    return h


@triton.jit
def put(out, value, row, column, width, live):
    """Write to rows of a contiguous tensor; None takes nothing."""
    if out is not None:
        tl.store(out + row.to(tl.int64) * width + column, narrow(value, out.dtype.element_ty), mask=live)


@triton.jit
def vector(tensor, column, width, step):
    """A vector of a row's width, in float32: (1, D); None stays None."""
    if tensor is not None:
        tensor = widen(tl.load(tensor + column * step, mask=column < width, other=0.0))
    return tensor


@triton.jit
def moved(weight, DTYPE: tl.constexpr, OFFSET: tl.constexpr):
    """A weight plus its offset, rounded as DTYPE; None without a weight."""
    if weight is not None:
        weight = rounded(weight, DTYPE)
        if OFFSET != 0.0:
            weight = rounded(weight + OFFSET, DTYPE)
    return weight


@dataclass(frozen=True)
class Config:
    """How a kernel is cut: elements of a row at a time, rows per program, warps; `whole` if a row is read once, as a whole."""

    kernel: Any
    block: int
    rows: int
    num_warps: int
    whole: bool = True

    @property
    def options(self) -> dict[str, int]:
        """Triton's own; without fusion ``squares / width + eps`` rounds where the reference does."""
        return {"num_warps": self.num_warps, "enable_fp_fusion": False}

    @property
    def name(self) -> str:
        return f"{self.kernel.__name__}-{self.rows}x{self.block}-{self.num_warps}warps"

    def suits(self, dense: bool) -> bool:
        """32 elements to a thread with an address each spill registers (seen in compiled code for sm_80 to sm_100)."""
        return self.whole and (dense or self.block <= 8192)


def configs(whole: Any, in_blocks: Any, widest: int = 16384) -> tuple[Config, ...]:
    """The ways to cut a pair of kernels, for rows that fit in registers (up to `widest`) and for wider ones, the narrowest first.

    8 elements to a thread up to 2048: one 16-byte load in 16 bits. Wider rows keep up to 32 in registers; beyond that, several passes.
    Not tuned: no timing has been taken on a GPU yet.
    """
    cuts = ((64, 16, 4), (128, 8, 4), (256, 4, 4), (512, 2, 4), (1024, 1, 4), (2048, 1, 8), (4096, 1, 8), (8192, 1, 16), (16384, 1, 16))
    return (*(Config(whole, *cut) for cut in cuts if cut[0] <= widest), Config(in_blocks, 4096, 1, 8, whole=False))


def config_for(every: tuple[Config, ...], width: int, dense: bool) -> Config:
    """The narrowest configuration that holds a row, else the last. `dense`: neighbours in a row are neighbours in memory."""
    return next((c for c in every if width <= c.block and c.suits(dense)), every[-1])


def launch(
    every: tuple[Config, ...], x: Tensor, residual: Tensor | None, vectors: tuple[Tensor | None, ...], out: Tensor, total: Tensor | None,
    eps: float, **constexprs: Any,
) -> None:  # fmt: skip
    """Run the kernel that suits: it writes to `out` and `total`, (..., D), what it makes of rows of x and residual and of vectors of a row's width."""
    width = x.shape[-1]
    vectors = tuple(None if v is None else v.expand(width) for v in vectors)
    seen = Rows.of(x) if residual is None else Rows.of(x, residual)
    _, size1, size2 = seen.sizes
    x_strides, r_strides = seen.strides[0], seen.strides[-1]
    steps = [t.stride(-1) for t in (seen.tensors[0], seen.tensors[-1])] + [1 if v is None else v.stride(0) for v in vectors]
    config = config_for(every, width, all(s == 1 for s in steps))
    rows = out.numel() // width
    assert rows < 2**31, "rows are numbered in 32 bits"
    with torch.cuda.device_of(x):
        config.kernel[(triton.cdiv(rows, config.rows),)](
            seen.tensors[0], None if residual is None else seen.tensors[1], *vectors, out, total, rows, width, size1, size2,
            *x_strides, *r_strides, *steps, eps, **constexprs, ROWS=config.rows, BLOCK=config.block, **config.options,
        )  # fmt: skip


def type_of(dtype: torch.dtype | None) -> tl.dtype | None:
    """A dtype as Triton names it; None stays None."""
    return None if dtype is None else TYPES[dtype]


def ahead(config: Config, layout: str, name: str, pointers: dict[str, tl.dtype | None], **constexprs: Any) -> Launch:
    """A launch to compile ahead. `layout`: "dense" is contiguous and aligned, "rows" has strides over the leading dims, "strided" over the last dim too."""
    names = config.kernel.arg_names
    ones = [n for n in names if n in ("size1", "size2") or n.endswith("_step")]
    ones = {"dense": ones, "rows": ones[2:], "strided": []}[layout]
    known: dict[str, Any] = {n: None for n, t in pointers.items() if t is None} | dict.fromkeys(ones, 1)
    known |= {**constexprs, "ROWS": config.rows, "BLOCK": config.block}
    signature = {n: f"*{pointers[n]}" if n in pointers else "fp32" if n == "eps" else "i32" for n in names if n not in known}
    aligned = tuple(n for n in signature if n not in ("rows", "eps")) if layout == "dense" else ()
    return Launch(f"{config.name}-{layout}-{name}", config.kernel, signature, known, config.options, aligned)


def layouts(config: Config) -> list[str]:
    """The layouts for which a configuration is chosen."""
    return [n for n, dense in (("dense", True), ("rows", True), ("strided", False)) if not config.whole or config.suits(dense)]
