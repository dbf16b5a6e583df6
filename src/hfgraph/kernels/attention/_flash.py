"""Attention in one kernel: each program takes a tile of queries to all keys that they may attend to."""

from __future__ import annotations

import triton
import triton.language as tl

from hfgraph.kernels.attention._tile import LOG2E, agreed, sweep, visited
from hfgraph.kernels.floats import narrow, operand, widen


@triton.jit
def offsets(row, group, top, head_step, step, FAR: tl.constexpr):
    """Where a tile's rows begin in a tensor of pairs, from its first head and the query `top` on: (R, 1), in 32 bits unless FAR."""
    member, query = (row % group)[:, None], (row // group - top)[:, None]
    return member.to(tl.int64) * head_step + query.to(tl.int64) * step if FAR else member * head_step + query * step


@triton.jit
def attend(
    q, k, v, mask, bias, sinks, segments, start, slopes, heads, group, queries, keys, offset, scale, masked,
    q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d, m_b, m_h, m_m, m_n, b_b, b_h, b_m, b_n, s_b, s_n, pair, tile, split,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, CAP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, CHUNK: tl.constexpr, MASKED: tl.constexpr,
    EVERY: tl.constexpr, FAR: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCK: tl.constexpr, V_BLOCK: tl.constexpr,
):  # fmt: skip
    """Part `split` of SPLITS of the keys for one tile of one key head: `most`, `total` and `acc` as `sweep` gives them."""
    row = tile * ROWS + tl.arange(0, ROWS)
    live = row < queries * group
    query = row // group
    kind = pair % (heads // group)
    head, batch = kind * group + row % group, (pair // (heads // group)).to(tl.int64)
    base = offset if start is None else tl.load(start).to(tl.int32)
    at = query[:, None].to(tl.int64)
    h = head[:, None].to(tl.int64)
    alive = live[:, None]

    column = tl.arange(0, BLOCK)[None, :]
    qs = tl.load(q + batch * q_b + (h * q_h + at * q_m) + column * q_d, mask=alive & (column < WIDTH), other=0.0)
    qs = operand(qs, k.dtype.element_ty)
    k += batch * k_b + kind.to(tl.int64) * k_h
    v += batch * v_b + kind.to(tl.int64) * v_h
    top = tile * ROWS // group
    m_rows = offsets(row, group, top, m_h, m_m, FAR)
    b_rows = offsets(row, group, top, b_h, b_m, FAR)
    if mask is not None:
        mask += batch * m_b + kind.to(tl.int64) * group * m_h + top.to(tl.int64) * m_m
    if bias is not None:
        bias += batch * b_b + kind.to(tl.int64) * group * b_h + top.to(tl.int64) * b_m
    own = None
    if segments is not None:
        segments += batch * s_b
        own = tl.load(segments + (at + (keys - queries)) * s_n, mask=alive, other=0)
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + h, mask=alive, other=0.0)
    most, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    if sinks is not None and SPLITS == 1:
        most, total = widen(tl.load(sinks + head, mask=live, other=0.0)) * LOG2E, tl.full([ROWS], 1, tl.float32)
    acc = tl.zeros([ROWS, V_BLOCK], tl.float32)

    first = tile * ROWS // group + base
    last = tl.minimum((tile * ROWS + (ROWS - 1)) // group, queries - 1) + base
    begin, end = visited(first, last, keys, KEYS, LEFT, RIGHT, CHUNK, MASKED, EVERY)
    if SPLITS > 1:
        span = tl.cdiv(tl.cdiv(end - begin, KEYS), SPLITS) * KEYS
        begin += split * span
        end = tl.minimum(end, begin + span)
        low, high = begin, begin  # few rows wait for memory, not for comparisons
    else:
        low, high = agreed(first, last, keys, begin, end, KEYS, LEFT, RIGHT, CHUNK)
        most, total, acc = sweep(
            most, total, acc, low, high, low, low, qs, k, k_n, k_d, v, v_n, v_d, query[:, None] + base, own, slope,
            mask, m_rows, m_n, bias, b_rows, b_n, segments, s_n, alive, keys, scale, masked,
            WIDTH, V_WIDTH, CAP, LEFT, RIGHT, CHUNK, MASKED, tl.constexpr(True), KEYS, BLOCK, V_BLOCK,
        )  # fmt: skip
    most, total, acc = sweep(
        most, total, acc, begin, end, low, high, qs, k, k_n, k_d, v, v_n, v_d, query[:, None] + base, own, slope,
        mask, m_rows, m_n, bias, b_rows, b_n, segments, s_n, alive, keys, scale, masked,
        WIDTH, V_WIDTH, CAP, LEFT, RIGHT, CHUNK, MASKED, tl.constexpr(False), KEYS, BLOCK, V_BLOCK,
    )  # fmt: skip
    return most, total, acc


@triton.jit
def share(total, ZEROS: tl.constexpr):
    """What weights are divided by. A query without any key: a total of 0, whose weights shall be zeros (or, divided by it, NaN)."""
    if ZEROS:
        total = tl.where(total == 0, 1.0, total)
    return total


@triton.jit(do_not_specialize=["queries", "keys", "offset"])
def flash(
    q, k, v, mask, bias, sinks, segments, start, slopes, out, heads, group, queries, keys, offset, scale, masked,
    q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d, m_b, m_h, m_m, m_n, b_b, b_h, b_m, b_n, s_b, s_n,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, CAP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, CHUNK: tl.constexpr, MASKED: tl.constexpr,
    EVERY: tl.constexpr, FAR: tl.constexpr, ZEROS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCK: tl.constexpr, V_BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per tile of ROWS rows (a query and one of the `group` heads of a key head) of each key head."""
    tiles = tl.cdiv(queries * group, ROWS)
    pair = tl.program_id(0) // tiles
    tile = tiles - 1 - tl.program_id(0) % tiles  # of causal queries the last have most to do
    _, total, acc = attend(
        q, k, v, mask, bias, sinks, segments, start, slopes, heads, group, queries, keys, offset, scale, masked,
        q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d, m_b, m_h, m_m, m_n, b_b, b_h, b_m, b_n, s_b, s_n, pair, tile, 0,
        WIDTH, V_WIDTH, CAP, LEFT, RIGHT, CHUNK, MASKED, EVERY, FAR, tl.constexpr(1), ROWS, KEYS, BLOCK, V_BLOCK,
    )  # fmt: skip
    row = tile * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, V_BLOCK)[None, :]
    # Key heads of a batch and heads of a key head follow each other in the output.
    to = ((pair * group + row % group).to(tl.int64) * queries + row // group) * V_WIDTH + column
    value = narrow(acc / share(total, ZEROS)[:, None], out.dtype.element_ty)
    tl.store(out + to, value, mask=(row < queries * group) & (column < V_WIDTH))
