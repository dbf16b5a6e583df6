"""Triton kernels for LayerNorm over the last dim, with or without the residual addition before it.

The variance is the mean square of the values less their mean, never a difference of means, which would cancel where the mean is large.
"""

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
def _mean(over_row, width):
    """(R,) sums as means, (R, 1)."""
    return tl.div_rn(over_row, tl.full(over_row.shape, width, tl.float32))[:, None]


@triton.jit
def _scaled(centred, variance, weight, bias, eps, ROUND: tl.constexpr, PRODUCT: tl.constexpr, SUM: tl.constexpr, LAST: tl.constexpr):
    """``centred / sqrt(variance + eps) * weight + bias``, rounded as the reference rounds: centred (R, D), variance (R, 1), weight and bias (1, D) or None."""
    y = rounded(centred * tl.rsqrt(variance + eps), ROUND)
    if weight is not None:
        y = rounded(y * weight, PRODUCT)
    if bias is not None:
        y = rounded(y + bias, SUM)
    return rounded(y, LAST)


@triton.jit
def one_pass(
    x, residual, weight, bias, out, total, rows, width, size1, size2, x0, x1, x2, r0, r1, r2, x_step, r_step, w_step, b_step, eps,
    MULTIPLIER: tl.constexpr, OFFSET: tl.constexpr, ROUND: tl.constexpr, WEIGHT: tl.constexpr, PRODUCT: tl.constexpr, SUM: tl.constexpr,
    LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of at most BLOCK elements, ROWS of them in a program."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    live = (row < rows) & (column < width)
    x = rows_of(x, row, size1, size2, x0, x1, x2)
    residual = rows_of(residual, row, size1, size2, r0, r1, r2)
    h = summed(x, residual, column, x_step, r_step, live, MULTIPLIER)
    centred = tl.where(live, h - _mean(tl.sum(h, axis=1), width), 0.0)
    variance = _mean(tl.sum(centred * centred, axis=1), width)
    put(total, h, row, column, width, live)
    w = moved(vector(weight, column, width, w_step), WEIGHT, OFFSET)
    b = vector(bias, column, width, b_step)
    put(out, _scaled(centred, variance, w, b, eps, ROUND, PRODUCT, SUM, LAST), row, column, width, live)


@triton.jit
def three_pass(
    x, residual, weight, bias, out, total, rows, width, size1, size2, x0, x1, x2, r0, r1, r2, x_step, r_step, w_step, b_step, eps,
    MULTIPLIER: tl.constexpr, OFFSET: tl.constexpr, ROUND: tl.constexpr, WEIGHT: tl.constexpr, PRODUCT: tl.constexpr, SUM: tl.constexpr,
    LAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of any width, ROWS of them in a program, BLOCK elements at a time: their mean, then their variance, then the values."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    x = rows_of(x, row, size1, size2, x0, x1, x2)
    residual = rows_of(residual, row, size1, size2, r0, r1, r2)
    values = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)[None, :]
        values += summed(x, residual, column, x_step, r_step, (row < rows) & (column < width), MULTIPLIER)
    mean = _mean(tl.sum(values, axis=1), width)
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)[None, :]
        live = (row < rows) & (column < width)
        centred = tl.where(live, summed(x, residual, column, x_step, r_step, live, MULTIPLIER) - mean, 0.0)
        squares += centred * centred
    variance = _mean(tl.sum(squares, axis=1), width)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)[None, :]
        live = (row < rows) & (column < width)
        # The inputs again, not the stored sum: another thread may have written it.
        h = summed(x, residual, column, x_step, r_step, live, MULTIPLIER)
        w = moved(vector(weight, column, width, w_step), WEIGHT, OFFSET)
        b = vector(bias, column, width, b_step)
        put(out, _scaled(h - mean, variance, w, b, eps, ROUND, PRODUCT, SUM, LAST), row, column, width, live)
        put(total, h, row, column, width, live)


# A row of 16384 spilled registers in some launches: two reductions and a bias need more of them than RMSNorm does.
CONFIGS = configs(one_pass, three_pass, widest=8192)


def normalise(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    multiplier: float,
    offset: float,
    compute_dtype: torch.dtype | None,
    round_dtype: torch.dtype | None,
    weight_dtype: torch.dtype | None,
    out_dtype: torch.dtype | None,
    spelled: int,
) -> tuple[Tensor, Tensor | None]:
    """`layer_norm` of x, or of ``x * multiplier + residual``, and that sum: (..., D) each, fresh and contiguous; see the ops for the arguments."""
    held = None if weight is None else weight_dtype or weight.dtype
    computed = compute_dtype or x.dtype
    rounding: dict[str, torch.dtype | None]
    if spelled:
        product = _promoted(round_dtype or computed, held)
        last = _promoted(product, None if bias is None else bias.dtype)
        rounding = {"ROUND": round_dtype, "PRODUCT": product, "SUM": last, "LAST": None}
    else:  # one rounding after weight and bias; the guard lets pass no two that round both
        last = round_dtype or computed
        rounding = {"ROUND": None, "PRODUCT": None, "SUM": None, "LAST": last if computed is torch.float32 else computed}
    out = torch.empty(x.shape, dtype=out_dtype or last, device=x.device)
    total = None if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        launch(
            CONFIGS, x, residual, (weight, bias), out, total, eps, MULTIPLIER=float(multiplier), OFFSET=float(offset), WEIGHT=type_of(held),
            **{n: type_of(d) for n, d in rounding.items()},
        )  # fmt: skip
    return out, total


def _promoted(dtype: torch.dtype, other: torch.dtype | None) -> torch.dtype:
    return dtype if other is None else torch.promote_types(dtype, other)


def launches(residual: bool) -> tuple[Launch, ...]:
    """Every configuration x layout, over dtypes and rounding points, that `normalise` may ask for, up to equal tiles."""
    bf16, fp16, fp32 = tl.bfloat16, tl.float16, tl.float32
    found: list[Launch] = []
    for config in CONFIGS:
        for layout in layouts(config):
            found += [_launch(config, layout, residual, t, weight=t, bias=t, last=t) for t in ((fp32, fp16, bf16) if layout == "dense" else (fp32, bf16))]
        # An offset weight, no weight, a form spelled out that rounds on the way, a multiplier: other code, the same tiles.
        found.append(_launch(config, "dense", residual, bf16, weight=bf16, bias=bf16, offset=1.0, last=bf16))
        found.append(_launch(config, "dense", residual, bf16, weight=None, bias=None, last=None))
        found.append(_launch(config, layouts(config)[-1], residual, bf16, weight=fp32, bias=fp32, round_to=bf16))
        if residual:
            found.append(_launch(config, "dense", residual, bf16, weight=bf16, bias=None, last=bf16, multiplier=0.22))
    return tuple(found)


def _launch(
    config: Config, layout: str, residual: bool, dtype: tl.dtype, *, weight: tl.dtype | None, bias: tl.dtype | None, multiplier: float = 1.0,
    offset: float = 0.0, round_to: tl.dtype | None = None, last: tl.dtype | None = None,
) -> Launch:  # fmt: skip
    pointers = {"x": dtype, "residual": dtype if residual else None, "weight": weight, "bias": bias, "out": dtype, "total": dtype if residual else None}
    wide = tl.float32 if round_to else None
    rounding: dict[str, Any] = {
        "MULTIPLIER": multiplier, "OFFSET": offset, "ROUND": round_to, "WEIGHT": weight, "PRODUCT": wide, "SUM": wide, "LAST": last,
    }  # fmt: skip
    times = "" if multiplier == 1 else f"-times_{multiplier}"
    return ahead(config, layout, f"{dtype}-weight_{weight}_{offset}-bias_{bias}-round_{round_to}-last_{last}{times}", pointers, **rounding)
