"""What both attention kernels do: a tile of queries meets blocks of keys, with a running softmax in float32.

A tile's rows are pairs of a query and one of the heads that share a key head, so that each key is loaded once for all of them.
Scores are in units of log2, for which hardware has the exponential. What the positions alone say about a whole block of keys
is decided per block: blocks without an allowed pair are not visited, blocks without a forbidden one are not compared.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from hfgraph.kernels.floats import operand, rounded, widen

LOG2E = tl.constexpr(math.log2(math.e))


@triton.jit
def tanh(x):
    """In float32, to some units in the last place: a series near zero, where the quotient cancels."""
    x2 = x * x
    near = x * (1 + x2 * (-1 / 3 + x2 * (2 / 15 + x2 * (-17 / 315 + x2 * (62 / 2835)))))
    return tl.where(x2 < 0.09, near, 1 - 2 / (tl.exp2(x * (2 * LOG2E)) + 1))


@triton.jit
def block(tensor, step, width_step, first, count, WHOLE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows `first` ... `first` + ROWS - 1 of a matrix of `count` rows of WIDTH elements, zero beyond: (ROWS, BLOCK)."""
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    # Only the first row's offset may not fit 32 bits.
    at = tensor + first.to(tl.int64) * step + (row * step + column * width_step)
    if WHOLE and WIDTH == BLOCK:
        value = tl.load(at)
    elif WHOLE:
        value = tl.load(at, mask=column < WIDTH, other=0.0)
    elif WIDTH == BLOCK:
        value = tl.load(at, mask=first + row < count, other=0.0)
    else:
        value = tl.load(at, mask=(first + row < count) & (column < WIDTH), other=0.0)
    return value


@triton.jit
def visited(first, last, keys, BLOCK: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, CHUNK: tl.constexpr, MASKED: tl.constexpr, EVERY: tl.constexpr):
    """The keys that queries at positions `first` ... `last` may attend to by position: the first one, at a block's begin, and the end."""
    begin, end = 0, keys
    if RIGHT >= 0:
        end = tl.minimum(end, last + (RIGHT + 1))
    if LEFT >= 0:
        begin = tl.maximum(begin, first - LEFT)
    if CHUNK > 0:
        begin = tl.maximum(begin, first // CHUNK * CHUNK)
        end = tl.minimum(end, (last // CHUNK + 1) * CHUNK)
    if MASKED != "out":
        # A query without any key attends to all of them. The first position has the fewest keys before it, the last after it.
        lonely = first > last
        if RIGHT >= 0:
            lonely |= first + RIGHT < 0
        if LEFT >= 0:
            lonely |= last - LEFT >= keys
        if CHUNK > 0:
            lonely |= (first < 0) | (last // CHUNK * CHUNK >= keys)
        begin, end = tl.where(EVERY | lonely, 0, begin), tl.where(EVERY | lonely, keys, end)
    return begin // BLOCK * BLOCK, end


@triton.jit
def agreed(first, last, keys, begin, end, BLOCK: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, CHUNK: tl.constexpr):
    """The blocks among `begin` ... `end` in which all queries at `first` ... `last` may attend to all keys by position; perhaps none."""
    low, high = begin, tl.minimum(end, keys)
    if RIGHT >= 0:
        high = tl.minimum(high, first + (RIGHT + 1))
    if LEFT >= 0:
        low = tl.maximum(low, last - LEFT)
    if CHUNK > 0:
        low = tl.maximum(low, last // CHUNK * CHUNK)
        high = tl.where(first < 0, 0, tl.minimum(high, (first // CHUNK + 1) * CHUNK))
    low = (low + BLOCK - 1) // BLOCK * BLOCK
    return low, tl.maximum(high // BLOCK * BLOCK, low)


@triton.jit
def near(position, key, seen, LEFT: tl.constexpr, RIGHT: tl.constexpr, CHUNK: tl.constexpr):
    """`seen`, without the pairs that their positions keep apart: position (R, 1), key (1, K)."""
    if RIGHT >= 0:
        seen &= key <= position + RIGHT
    if LEFT >= 0:
        seen &= key >= position - LEFT
    if CHUNK > 0:
        seen &= (key // CHUNK == position // CHUNK) & (position >= 0)  # division rounds towards zero
    return seen


@triton.jit
def score(
    s, position, first, own, slope, mask, m_rows, m_n, bias, b_rows, b_n, segments, s_n, live, keys, masked, dtype: tl.constexpr, CAP: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, CHUNK: tl.constexpr, MASKED: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Products (R, K), scaled, with everything done to them; -inf where a key does not count. `mask` and `bias` point at the
    tile's first row; `m_rows` and `b_rows` (R, 1) are the offsets of all rows."""
    if CAP > 0:
        s = tanh(s) * CAP
    column = tl.arange(0, s.shape[1])[None, :]
    key = first + column
    inside = key < keys
    low = s + masked if MASKED == "added" else masked
    there = live if WHOLE else live & inside
    if bias is not None:
        bias += first.to(tl.int64) * b_n
        added = widen(tl.load(bias + (b_rows + column * b_n), mask=there, other=0.0))
        if slope is not None:
            added = rounded(added + rounded(slope * (key - (keys - 1)).to(tl.float32), dtype), bias.dtype.element_ty)
        s += added * LOG2E
    elif slope is not None:
        s += rounded(slope * (key - (keys - 1)).to(tl.float32), dtype) * LOG2E
    seen = tl.full(s.shape, 1, tl.int1)
    if not WHOLE:
        seen = near(position, key, seen & inside, LEFT, RIGHT, CHUNK)
    if mask is not None:
        mask += first.to(tl.int64) * m_n
        seen &= tl.load(mask + (m_rows + column * m_n), mask=there, other=0) != 0
    if segments is not None:
        segments += first.to(tl.int64) * s_n
        seen &= own == tl.load(segments + column * s_n, mask=inside, other=0)
    if MASKED == "out":
        s = tl.where(seen, s, float("-inf"))
    else:
        s = tl.where(seen, s, low)
        if not WHOLE:
            s = tl.where(inside, s, float("-inf"))
    return s


@triton.jit
def sweep(
    most, total, acc, begin, end, low, high, q, k, k_n, k_d, v, v_n, v_d, position, own, slope, mask, m_rows, m_n, bias, b_rows, b_n, segments, s_n, live,
    keys, scale, masked, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, CAP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, CHUNK: tl.constexpr,
    MASKED: tl.constexpr, WHOLE: tl.constexpr, KEYS: tl.constexpr, BLOCK: tl.constexpr, V_BLOCK: tl.constexpr,
):  # fmt: skip
    """Go over the blocks of keys from `begin` to `end` but for those from `low` to `high`.

    Returns `most` and `total`, the largest score so far and the sum of weights relative to it (R,), and `acc`, the
    weighted sum of values (R, V_BLOCK).
    """
    dtype: tl.constexpr = k.dtype.element_ty
    for at in range(begin, end - (high - low), KEYS):
        first = at if WHOLE else tl.where(at < low, at, at + (high - low))
        ks = operand(block(k, k_n, k_d, first, keys, WHOLE, WIDTH, KEYS, BLOCK), dtype)
        s = tl.dot(q, tl.trans(ks), input_precision="ieee") * scale
        s = score(
            s, position, first, own, slope, mask, m_rows, m_n, bias, b_rows, b_n, segments, s_n, live, keys, masked, dtype, CAP,
            LEFT, RIGHT, CHUNK, MASKED, WHOLE,
        )  # fmt: skip
        higher = tl.maximum(most, tl.max(s, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet: all weights become 0, not NaN
        weight = tl.exp2(s - base[:, None])
        shrunk = tl.exp2(most - base)
        total = total * shrunk + tl.sum(weight, 1)
        vs = operand(block(v, v_n, v_d, first, keys, WHOLE, V_WIDTH, KEYS, V_BLOCK), dtype)
        acc = tl.dot(operand(weight, dtype), vs, acc * shrunk[:, None], input_precision="ieee")
        most = higher
    return most, total, acc
