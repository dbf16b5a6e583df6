"""Attention of few queries: the keys are split among programs, whose results a second kernel puts together."""

from __future__ import annotations

import triton
import triton.language as tl

from hfgraph.kernels.attention._flash import attend, share
from hfgraph.kernels.attention._tile import LOG2E
from hfgraph.kernels.floats import narrow, widen


@triton.jit(do_not_specialize=["queries", "keys", "offset"])
def partial(
    q, k, v, mask, bias, segments, start, slopes, sums, stats, heads, group, queries, keys, offset, scale, masked,
    q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d, m_b, m_h, m_m, m_n, b_b, b_h, b_m, b_n, s_b, s_n,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, CAP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, CHUNK: tl.constexpr, MASKED: tl.constexpr,
    EVERY: tl.constexpr, FAR: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCK: tl.constexpr, V_BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per tile of rows, as in `flash`, and part of the keys. The parts are cut from the keys that count, wherever these end."""
    tiles = tl.cdiv(queries * group, ROWS)
    pair, tile, split = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.program_id(1)
    most, total, acc = attend(
        q, k, v, mask, bias, None, segments, start, slopes, heads, group, queries, keys, offset, scale, masked,
        q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d, m_b, m_h, m_m, m_n, b_b, b_h, b_m, b_n, s_b, s_n, pair, tile, split,
        WIDTH, V_WIDTH, CAP, LEFT, RIGHT, CHUNK, MASKED, EVERY, FAR, SPLITS, ROWS, KEYS, BLOCK, V_BLOCK,
    )  # fmt: skip
    row = tile * ROWS + tl.arange(0, ROWS)
    live = row < queries * group
    to = (pair.to(tl.int64) * (queries * group) + row) * SPLITS + split
    tl.store(stats + 2 * to, most, mask=live)
    tl.store(stats + 2 * to + 1, total, mask=live)
    column = tl.arange(0, V_BLOCK)[None, :]
    tl.store(sums + to[:, None] * V_WIDTH + column, acc, mask=live[:, None] & (column < V_WIDTH))


@triton.jit(do_not_specialize=["queries"])
def gather(
    sums, stats, sinks, out, heads, group, queries,
    V_WIDTH: tl.constexpr, ZEROS: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program per row and COLUMNS of its elements: weights of the parts that are relative to the largest score of all. SPLITS <= BLOCK."""
    row, pair = tl.program_id(0) % (queries * group), tl.program_id(0) // (queries * group)
    head = pair * group + row % group  # of all batches
    split = tl.arange(0, BLOCK)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = tl.program_id(0).to(tl.int64) * SPLITS + split
    most = tl.load(stats + 2 * at, mask=split < SPLITS, other=float("-inf"))
    total = tl.load(stats + 2 * at + 1, mask=split < SPLITS, other=0.0)
    sink = float("-inf") if sinks is None else widen(tl.load(sinks + head % heads)) * LOG2E
    highest = tl.maximum(tl.max(most, 0), sink)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    weight = tl.exp2(most - highest)
    whole = tl.sum(total * weight, 0) + tl.exp2(sink - highest)
    part = tl.load(sums + at[:, None] * V_WIDTH + column[None, :], mask=(split[:, None] < SPLITS) & (column[None, :] < V_WIDTH), other=0.0)
    value = tl.sum(part * weight[:, None], 0) / share(whole, ZEROS)
    tl.store(out + (head.to(tl.int64) * queries + row // group) * V_WIDTH + column, narrow(value, out.dtype.element_ty), mask=column < V_WIDTH)
