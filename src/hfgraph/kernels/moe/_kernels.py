"""The two products of experts as kernels: each program takes a tile of rows of one expert to a block of its matrix's rows."""

from __future__ import annotations

import triton
import triton.language as tl

from hfgraph.kernels.floats import narrow, widen
from hfgraph.kernels.glu._gate import activated, gate_times_up
from hfgraph.kernels.moe._tile import biased, placed, products


@triton.jit(do_not_specialize=["tiles"])
def up(
    x, order, ends, weights, matrices, biases, inner, tiles, alpha, gate_max, act_max, up_min, up_max,
    x_t, x_h, w_t, w_c, m_e, m_n, m_k, b_e, b_n,
    CHOICES: tl.constexpr, FACTORED: tl.constexpr, GATED: tl.constexpr, INTERLEAVED: tl.constexpr, ACTIVATION: tl.constexpr, OFFSET: tl.constexpr,
    WIDTH: tl.constexpr, INNER: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Tokens to `inner` (P, INNER), in the sorted order: the first product, its bias, the activation and the gate.

    `weights` multiply the tokens first; None where they do not.
    """
    expert, first, end, block = placed(ends, tiles, EXPERTS, BLOCK, ROWS, (INNER + COLUMNS - 1) // COLUMNS, GROUP)
    if expert >= EXPERTS:
        return
    dtype: tl.constexpr = matrices.dtype.element_ty
    row = first + tl.arange(0, ROWS)[:, None]
    pair = tl.load(order + tl.where(row < end, row, first)).to(tl.int32)
    token, choice = (pair // CHOICES).to(tl.int64), pair % CHOICES
    factor = None
    if weights is not None:
        factor = widen(tl.load(weights + token * w_t + choice * w_c))
    start = block * COLUMNS
    column = start + tl.arange(0, COLUMNS)[None, :]
    live = column < INNER
    FULL: tl.constexpr = INNER % COLUMNS == 0
    matrices += expert.to(tl.int64) * m_e
    if biases is not None:
        biases += expert.to(tl.int64) * b_e
    x += token * x_t
    if INTERLEAVED:
        # Neighbouring rows are a gate and what it gates: a product of both, twice as wide, is read as it lies in memory.
        matrices += (2 * start).to(tl.int64) * m_n
        both, _ = products(x, factor, matrices, 0, 2 * (INNER - start), x_h, m_n, m_k, FULL, tl.constexpr(False), FACTORED, WIDTH, DEPTH, ROWS, 2 * COLUMNS)
        gate, value = tl.split(tl.reshape(both, [ROWS, COLUMNS, 2]))
        gate = biased(gate, biases, 2 * column, b_n, live, dtype)
        value = biased(value, biases, 2 * column + 1, b_n, live, dtype)
    else:
        matrices += start.to(tl.int64) * m_n
        apart = tl.full([], INNER, tl.int64) * m_n
        gate, value = products(x, factor, matrices, apart, INNER - start, x_h, m_n, m_k, FULL, GATED, FACTORED, WIDTH, DEPTH, ROWS, COLUMNS)
        gate = biased(gate, biases, column, b_n, live, dtype)
        value = biased(value, biases, INNER + column, b_n, live, dtype) if GATED else value
    if GATED:
        result = gate_times_up(gate, value, alpha, gate_max, act_max, up_min, up_max, ACTIVATION, OFFSET, dtype, dtype, dtype)
    else:
        result = activated(gate, alpha, ACTIVATION, dtype)
    tl.store(inner + row.to(tl.int64) * INNER + column, narrow(result, inner.dtype.element_ty), mask=live & (row < end))


@triton.jit(do_not_specialize=["tiles"])
def down(
    inner, order, ends, weights, matrices, biases, out, tiles,
    w_t, w_c, m_e, m_n, m_k, b_e, b_n,
    CHOICES: tl.constexpr, WIDTH: tl.constexpr, INNER: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`inner` (P, INNER) to `out` (P, WIDTH), in the order of tokens again: the second product, its bias, and the weights.

    Each pair of a token and a choice has a row of its own, so nothing is added up here. `weights` are None where they multiply the tokens.
    """
    expert, first, end, block = placed(ends, tiles, EXPERTS, BLOCK, ROWS, (WIDTH + COLUMNS - 1) // COLUMNS, GROUP)
    if expert >= EXPERTS:
        return
    row = first + tl.arange(0, ROWS)[:, None]
    here = tl.where(row < end, row, first)
    start = block * COLUMNS
    column = start + tl.arange(0, COLUMNS)[None, :]
    live = column < WIDTH
    matrices += expert.to(tl.int64) * m_e + start.to(tl.int64) * m_n
    if biases is not None:
        biases += expert.to(tl.int64) * b_e
    rows = inner + here.to(tl.int64) * INNER
    FULL: tl.constexpr = WIDTH % COLUMNS == 0
    value, _ = products(rows, None, matrices, 0, WIDTH - start, 1, m_n, m_k, FULL, tl.constexpr(False), tl.constexpr(None), INNER, DEPTH, ROWS, COLUMNS)
    value = biased(value, biases, column, b_n, live, matrices.dtype.element_ty)
    pair = tl.load(order + here).to(tl.int32)
    if weights is not None:
        value *= widen(tl.load(weights + (pair // CHOICES).to(tl.int64) * w_t + pair % CHOICES * w_c))
    tl.store(out + pair.to(tl.int64) * WIDTH + column, narrow(value, out.dtype.element_ty), mask=live & (row < end))
