"""What both products of experts do: find a tile's expert and rows, multiply them, add a bias."""

from __future__ import annotations

import triton
import triton.language as tl

from hfgraph.kernels.floats import operand, rounded, widen


@triton.jit
def placed(ends, tiles, EXPERTS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, GROUP: tl.constexpr):
    """Where a program works, from how many rows the experts have: its expert, a row and the end of that expert's rows, and the block of columns.

    Tiles are numbered expert by expert. Their number is only known here; a program without a tile is told an expert beyond the last.
    `ends` says where each expert's rows end in the sorted order. EXPERTS <= BLOCK.
    """
    tile, block = tl.swizzle2d(tl.program_id(0) // BLOCKS, tl.program_id(0) % BLOCKS, tiles, BLOCKS, GROUP)
    expert = tl.arange(0, BLOCK)
    end = tl.load(ends + expert, mask=expert < EXPERTS, other=0)
    start = tl.load(ends + expert - 1, mask=(expert > 0) & (expert < EXPERTS), other=0)
    count = tl.cdiv(end - start, ROWS)
    own = tl.sum((tl.cumsum(count, 0) <= tile).to(tl.int32), 0)
    before = tl.sum(tl.where(expert < own, count, 0), 0)
    first = tl.sum(tl.where(expert == own, start, 0), 0) + (tile - before) * ROWS
    return own, first, tl.sum(tl.where(expert == own, end, 0), 0), block


@triton.jit
def part(at, inside, WHOLE: tl.constexpr):
    """What is loaded where it is inside, zeros elsewhere."""
    return tl.load(at) if WHOLE else tl.load(at, mask=inside, other=0.0)


@triton.jit
def products(
    rows, factor, matrix, apart, count, row_step, n_step, k_step,
    FULL: tl.constexpr, PAIR: tl.constexpr, FACTORED: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Rows times rows of a matrix, and where PAIR also times those that lie `apart` elements behind: (ROWS, COLUMNS) each, in float32.

    `rows` points at the rows' first elements, (ROWS, 1), `matrix` at the first of `count` rows of WIDTH elements; FULL: those are COLUMNS or more.
    `factor`, (ROWS, 1), multiplies the rows first, which is rounded to the dtype FACTORED; None leaves them as they are.
    """
    dtype: tl.constexpr = matrix.dtype.element_ty
    WHOLE: tl.constexpr = WIDTH % DEPTH == 0
    column, k = tl.arange(0, COLUMNS)[None, :], tl.arange(0, DEPTH)
    places = column * n_step + k[:, None] * k_step
    rows += k[None, :] * row_step
    first = tl.zeros([ROWS, COLUMNS], tl.float32)
    second = tl.zeros([ROWS, COLUMNS], tl.float32)
    for at in range(0, WIDTH, DEPTH):
        inside = k < WIDTH - at
        value = part(rows, inside[None, :], WHOLE)
        if factor is not None:
            value = rounded(widen(value) * factor, FACTORED)
        value = operand(value, dtype)
        there = inside[:, None] if FULL else inside[:, None] & (column < count)
        first = tl.dot(value, operand(part(matrix + places, there, WHOLE and FULL), dtype), first, input_precision="ieee")
        if PAIR:
            second = tl.dot(value, operand(part(matrix + apart + places, there, WHOLE and FULL), dtype), second, input_precision="ieee")
        rows += DEPTH * row_step
        matrix += DEPTH * k_step
    return first, second


@triton.jit
def biased(value, bias, column, step, live, dtype: tl.constexpr):
    """Products (R, C), rounded to the experts' dtype, and once more with the expert's bias where there is one."""
    value = rounded(value, dtype)
    if bias is not None:
        value = rounded(value + widen(tl.load(bias + column * step, mask=live, other=0.0)), dtype)
    return value
