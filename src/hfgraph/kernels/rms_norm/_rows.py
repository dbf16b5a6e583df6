"""Triton kernels for RMSNorm over the last dim, with or without the residual addition before it.

One program takes a few whole rows. Where a row fits in registers it is read once (`one_pass`); wider rows are read twice
(`two_pass`). Rows are found through strides, so views cut from fused projections and transposed views need no copy.
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
from hfgraph.kernels.rows import rows_of
from hfgraph.kernels.strides import Rows


@triton.jit
def _sum(x, residual, column, x_step, r_step, live):
    """x, or ``x + residual`` rounded to x's dtype, in float32: x and residual point at rows (R, 1), `column` is (1, D)."""
    h = widen(tl.load(x + column * x_step, mask=live, other=0.0))
    if residual is not None:
        h = rounded(h + widen(tl.load(residual + column * r_step, mask=live, other=0.0)), x.dtype.element_ty)
    return h


@triton.jit
def _store(out, value, row, column, width, live):
    """Write to rows of a contiguous tensor; None takes nothing."""
    if out is not None:
        tl.store(out + row.to(tl.int64) * width + column, narrow(value, out.dtype.element_ty), mask=live)


@triton.jit
def _scaled(h, squares, weight, width, eps, SCALE: tl.constexpr, ROUND: tl.constexpr, PRODUCT: tl.constexpr):
    """``h / sqrt(squares / width + eps) * weight``, rounded as the reference rounds: h (R, D), squares (R,), weight (1, D) or None."""
    inverse = tl.rsqrt(tl.div_rn(squares, tl.full(squares.shape, width, tl.float32)) + eps)[:, None]
    y = rounded(rounded(h, SCALE) * rounded(inverse, SCALE), SCALE)
    y = rounded(y, ROUND)
    if weight is not None:
        y = rounded(y * weight, PRODUCT)
    return y


@triton.jit
def _weights(weight, column, width, step, WEIGHT: tl.constexpr, OFFSET: tl.constexpr):
    """The weight plus its offset, in float32, rounded as WEIGHT: (1, D); None without a weight."""
    if weight is not None:
        weight = rounded(widen(tl.load(weight + column * step, mask=column < width, other=0.0)), WEIGHT)
        if OFFSET != 0.0:
            weight = rounded(weight + OFFSET, WEIGHT)
    return weight


@triton.jit
def one_pass(
    x, residual, weight, out, total, rows, width, size1, size2, x0, x1, x2, x_step, r0, r1, r2, r_step, w_step, eps,
    OFFSET: tl.constexpr, SCALE: tl.constexpr, ROUND: tl.constexpr, WEIGHT: tl.constexpr, PRODUCT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of at most BLOCK elements, ROWS of them in a program."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    live = (row < rows) & (column < width)
    w = _weights(weight, column, width, w_step, WEIGHT, OFFSET)  # before the reduction, which would make the load wait
    x = rows_of(x, row, size1, size2, x0, x1, x2)
    residual = rows_of(residual, row, size1, size2, r0, r1, r2)
    h = _sum(x, residual, column, x_step, r_step, live)
    y = _scaled(h, tl.sum(h * h, axis=1), w, width, eps, SCALE, ROUND, PRODUCT)
    _store(out, y, row, column, width, live)
    _store(total, h, row, column, width, live)


@triton.jit
def two_pass(
    x, residual, weight, out, total, rows, width, size1, size2, x0, x1, x2, x_step, r0, r1, r2, r_step, w_step, eps,
    OFFSET: tl.constexpr, SCALE: tl.constexpr, ROUND: tl.constexpr, WEIGHT: tl.constexpr, PRODUCT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of any width, ROWS of them in a program, BLOCK elements at a time."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    x = rows_of(x, row, size1, size2, x0, x1, x2)
    residual = rows_of(residual, row, size1, size2, r0, r1, r2)
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)[None, :]
        h = _sum(x, residual, column, x_step, r_step, (row < rows) & (column < width))
        squares += h * h
    summed = tl.sum(squares, axis=1)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)[None, :]
        live = (row < rows) & (column < width)
        # The inputs again, not the stored sum: another thread may have written it.
        h = _sum(x, residual, column, x_step, r_step, live)
        y = _scaled(h, summed, _weights(weight, column, width, w_step, WEIGHT, OFFSET), width, eps, SCALE, ROUND, PRODUCT)
        _store(out, y, row, column, width, live)
        _store(total, h, row, column, width, live)


@dataclass(frozen=True)
class Config:
    """How a kernel is cut: elements of a row at a time, rows per program, warps."""

    kernel: Any
    block: int
    rows: int
    num_warps: int

    @property
    def options(self) -> dict[str, int]:
        """Triton's own; without fusion ``squares / width + eps`` rounds where the reference does."""
        return {"num_warps": self.num_warps, "enable_fp_fusion": False}

    @property
    def name(self) -> str:
        return f"{self.kernel.__name__}-{self.rows}x{self.block}-{self.num_warps}warps"


# 8 elements to a thread up to 2048: one 16-byte load in 16 bits. Wider rows keep up to 32 in registers; beyond that, two passes.
# Not tuned: no timing has been taken on a GPU yet.
CONFIGS = (
    Config(one_pass, 64, 16, 4),
    Config(one_pass, 128, 8, 4),
    Config(one_pass, 256, 4, 4),
    Config(one_pass, 512, 2, 4),
    Config(one_pass, 1024, 1, 4),
    Config(one_pass, 2048, 1, 8),
    Config(one_pass, 4096, 1, 8),
    Config(one_pass, 8192, 1, 16),
    Config(one_pass, 16384, 1, 16),
    Config(two_pass, 4096, 1, 8),
)


def config_for(width: int, dense: bool) -> Config:
    """The narrowest one-pass configuration that holds a row, else two passes. `dense`: neighbours in a row are neighbours in memory."""
    return next((c for c in CONFIGS if width <= c.block and _suits(c, dense)), CONFIGS[-1])


def _suits(config: Config, dense: bool) -> bool:
    # 32 elements to a thread with an address each spill registers (seen in compiled code for sm_80 to sm_100).
    return config.kernel is one_pass and (dense or config.block <= 8192)


def normalise(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    eps: float,
    offset: float,
    compute_dtype: torch.dtype | None,
    scale_dtype: torch.dtype | None,
    round_dtype: torch.dtype | None,
    weight_dtype: torch.dtype | None,
    out_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None]:
    """`rms_norm` of x, or of ``x + residual``, and that sum: (..., D) each, fresh and contiguous; see the op for the arguments."""
    width = x.shape[-1]
    normed_dtype = round_dtype or scale_dtype or compute_dtype or x.dtype
    held = None if weight is None else weight_dtype or weight.dtype
    product = normed_dtype if held is None else torch.promote_types(normed_dtype, held)
    out = torch.empty(x.shape, dtype=out_dtype or product, device=x.device)
    total = None if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out, total
    if weight is not None:
        weight = weight.expand(width)
    seen = Rows.of(x) if residual is None else Rows.of(x, residual)
    _, size1, size2 = seen.sizes
    x_strides, r_strides = seen.strides[0], seen.strides[-1]
    x_step, r_step, w_step = seen.tensors[0].stride(-1), seen.tensors[-1].stride(-1), 1 if weight is None else weight.stride(0)
    config = config_for(width, x_step == r_step == w_step == 1)
    rows = out.numel() // width
    assert rows < 2**31, "rows are numbered in 32 bits"
    with torch.cuda.device_of(x):
        config.kernel[(triton.cdiv(rows, config.rows),)](
            seen.tensors[0], None if residual is None else seen.tensors[1], weight, out, total, rows, width, size1, size2,
            *x_strides, x_step, *r_strides, r_step, w_step, eps,
            OFFSET=float(offset), SCALE=_type(scale_dtype), ROUND=_type(round_dtype), WEIGHT=_type(held), PRODUCT=_type(product),
            ROWS=config.rows, BLOCK=config.block, **config.options,
        )  # fmt: skip
    return out, total


def _type(dtype: torch.dtype | None) -> tl.dtype | None:
    return None if dtype is None else TYPES[dtype]


def launches(residual: bool) -> tuple[Launch, ...]:
    """Every configuration x layout, over dtypes and rounding points, that `normalise` may ask for, up to equal tiles."""
    bf16, fp16, fp32 = tl.bfloat16, tl.float16, tl.float32
    found: list[Launch] = []
    for config in CONFIGS:
        layouts = [n for n, dense in (("dense", True), ("rows", True), ("strided", False)) if config.kernel is two_pass or _suits(config, dense)]
        for layout in layouts:
            found += [_launch(config, layout, t, residual, weight=t, round_to=t, out=t) for t in ((fp32, fp16, bf16) if layout == "dense" else (fp32, bf16))]
        # An offset weight in float32, no weight, a rounded scale: other code, the same tiles.
        found.append(_launch(config, "dense", bf16, residual, weight=bf16, held=fp32, offset=1.0, out=bf16))
        found.append(_launch(config, "dense", bf16, residual, weight=None, out=bf16))
        found.append(_launch(config, layouts[-1], bf16, residual, weight=fp32, scale=bf16, out=fp32))
    return tuple(found)


def _launch(
    config: Config, layout: str, dtype: tl.dtype, residual: bool, *, weight: tl.dtype | None, out: tl.dtype, offset: float = 0.0,
    scale: tl.dtype | None = None, round_to: tl.dtype | None = None, held: tl.dtype | None = None,
) -> Launch:  # fmt: skip
    """`layout`: "dense" is contiguous and aligned, "rows" has strides over the leading dims, "strided" over the last dim too."""
    pointers = {"x": dtype, "residual": dtype if residual else None, "weight": weight, "out": out, "total": dtype if residual else None}
    ones = ("size1", "size2", "x_step", "r_step", "w_step")
    ones = {"dense": ones, "rows": ones[2:], "strided": ()}[layout]
    held = held or weight
    constexprs: dict[str, Any] = {n: None for n, t in pointers.items() if t is None} | dict.fromkeys(ones, 1) | {
        "OFFSET": offset, "SCALE": scale, "ROUND": round_to, "WEIGHT": held, "ROWS": config.rows, "BLOCK": config.block,
        "PRODUCT": round_to if held == round_to else tl.float32,
    }  # fmt: skip
    signature = {n: f"*{pointers[n]}" if n in pointers else "fp32" if n == "eps" else "i32" for n in one_pass.arg_names if n not in constexprs}
    aligned = tuple(n for n in signature if n not in ("rows", "eps")) if layout == "dense" else ()
    name = f"{config.name}-{layout}-{dtype}-weight_{weight}_{held}-scale_{scale}-round_{round_to}-out_{out}"
    return Launch(name, config.kernel, signature, constexprs, config.options, aligned)
