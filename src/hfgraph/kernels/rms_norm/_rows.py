"""Triton kernels for RMSNorm over the last dim, with or without the residual addition before it."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hfgraph.kernels.floats import rounded
from hfgraph.kernels.launch import Launch
from hfgraph.kernels.rows import Config, ahead, configs, launch, layouts, moved, put, rows_of, summed, type_of, vector


@triton.jit
def scaled(h, squares, weight, width, eps, SCALE: tl.constexpr, ROUND: tl.constexpr, PRODUCT: tl.constexpr):
    """``h / sqrt(squares / width + eps) * weight``, rounded as the reference rounds: h (R, D), squares (R,), weight (1, D) or None."""
    inverse = tl.rsqrt(tl.div_rn(squares, tl.full(squares.shape, width, tl.float32)) + eps)[:, None]
    y = rounded(rounded(h, SCALE) * rounded(inverse, SCALE), SCALE)
    y = rounded(y, ROUND)
    if weight is not None:
        y = rounded(y * weight, PRODUCT)
    return y


@triton.jit
def one_pass(
    x, residual, weight, out, total, rows, width, size1, size2, x0, x1, x2, r0, r1, r2, x_step, r_step, w_step, eps, MULTIPLIER: tl.constexpr,
    OFFSET: tl.constexpr, SCALE: tl.constexpr, ROUND: tl.constexpr, WEIGHT: tl.constexpr, PRODUCT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of at most BLOCK elements, ROWS of them in a program."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    live = (row < rows) & (column < width)
    w = moved(vector(weight, column, width, w_step), WEIGHT, OFFSET)  # before the reduction, which would make the load wait
    x = rows_of(x, row, size1, size2, x0, x1, x2)
    residual = rows_of(residual, row, size1, size2, r0, r1, r2)
    h = summed(x, residual, column, x_step, r_step, live, MULTIPLIER)
    y = scaled(h, tl.sum(h * h, axis=1), w, width, eps, SCALE, ROUND, PRODUCT)
    put(out, y, row, column, width, live)
    put(total, h, row, column, width, live)


@triton.jit
def two_pass(
    x, residual, weight, out, total, rows, width, size1, size2, x0, x1, x2, r0, r1, r2, x_step, r_step, w_step, eps, MULTIPLIER: tl.constexpr,
    OFFSET: tl.constexpr, SCALE: tl.constexpr, ROUND: tl.constexpr, WEIGHT: tl.constexpr, PRODUCT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of any width, ROWS of them in a program, BLOCK elements at a time."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    x = rows_of(x, row, size1, size2, x0, x1, x2)
    residual = rows_of(residual, row, size1, size2, r0, r1, r2)
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)[None, :]
        h = summed(x, residual, column, x_step, r_step, (row < rows) & (column < width), MULTIPLIER)
        squares += h * h
    over_row = tl.sum(squares, axis=1)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)[None, :]
        live = (row < rows) & (column < width)
        # The inputs again, not the stored sum: another thread may have written it.
        h = summed(x, residual, column, x_step, r_step, live, MULTIPLIER)
        w = moved(vector(weight, column, width, w_step), WEIGHT, OFFSET)
        y = scaled(h, over_row, w, width, eps, SCALE, ROUND, PRODUCT)
        put(out, y, row, column, width, live)
        put(total, h, row, column, width, live)


CONFIGS = configs(one_pass, two_pass)


def normalise(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    eps: float,
    multiplier: float,
    offset: float,
    compute_dtype: torch.dtype | None,
    scale_dtype: torch.dtype | None,
    round_dtype: torch.dtype | None,
    weight_dtype: torch.dtype | None,
    out_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None]:
    """`rms_norm` of x, or of ``x * multiplier + residual``, and that sum: (..., D) each, fresh and contiguous; see the ops for the arguments."""
    normed_dtype = round_dtype or scale_dtype or compute_dtype or x.dtype
    held = None if weight is None else weight_dtype or weight.dtype
    product = normed_dtype if held is None else torch.promote_types(normed_dtype, held)
    out = torch.empty(x.shape, dtype=out_dtype or product, device=x.device)
    total = None if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        launch(
            CONFIGS, x, residual, (weight,), out, total, eps, MULTIPLIER=float(multiplier), OFFSET=float(offset), SCALE=type_of(scale_dtype),
            ROUND=type_of(round_dtype), WEIGHT=type_of(held), PRODUCT=type_of(product),
        )  # fmt: skip
    return out, total


def launches(residual: bool) -> tuple[Launch, ...]:
    """Every configuration x layout, over dtypes and rounding points, that `normalise` may ask for, up to equal tiles."""
    bf16, fp16, fp32 = tl.bfloat16, tl.float16, tl.float32
    found: list[Launch] = []
    for config in CONFIGS:
        for layout in layouts(config):
            found += [_launch(config, layout, t, residual, weight=t, round_to=t, out=t) for t in ((fp32, fp16, bf16) if layout == "dense" else (fp32, bf16))]
        # An offset weight in float32, no weight, a rounded scale, a multiplier: other code, the same tiles.
        found.append(_launch(config, "dense", bf16, residual, weight=bf16, held=fp32, offset=1.0, out=bf16))
        found.append(_launch(config, "dense", bf16, residual, weight=None, out=bf16))
        found.append(_launch(config, layouts(config)[-1], bf16, residual, weight=fp32, scale=bf16, out=fp32))
        if residual:
            found.append(_launch(config, "dense", bf16, residual, weight=bf16, round_to=bf16, out=bf16, multiplier=0.22))
    return tuple(found)


def _launch(
    config: Config, layout: str, dtype: tl.dtype, residual: bool, *, weight: tl.dtype | None, out: tl.dtype, multiplier: float = 1.0, offset: float = 0.0,
    scale: tl.dtype | None = None, round_to: tl.dtype | None = None, held: tl.dtype | None = None,
) -> Launch:  # fmt: skip
    pointers = {"x": dtype, "residual": dtype if residual else None, "weight": weight, "out": out, "total": dtype if residual else None}
    held = held or weight
    rounding: dict[str, Any] = {
        "MULTIPLIER": multiplier, "OFFSET": offset, "SCALE": scale, "ROUND": round_to, "WEIGHT": held, "PRODUCT": round_to if held == round_to else tl.float32,
    }  # fmt: skip
    times = "" if multiplier == 1 else f"-times_{multiplier}"
    return ahead(config, layout, f"{dtype}-weight_{weight}_{held}-scale_{scale}-round_{round_to}-out_{out}{times}", pointers, **rounding)
