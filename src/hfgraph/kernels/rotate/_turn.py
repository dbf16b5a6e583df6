"""The Triton kernel of all rotations: of one tensor, or of queries and keys, with or without the norm of each head before it.

One program takes a few whole rows, a row being what one head has at one position. The two values of a pair are loaded as two
tiles, so that a thread has both. Rows are found through strides, which for tables may be zero.
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
from hfgraph.kernels.rms_norm._rows import scaled
from hfgraph.kernels.rows import moved, rows_of, vector
from hfgraph.kernels.strides import Rows


@triton.jit
def _product(a, table, b, other, PRODUCT: tl.constexpr, SIGN):
    """``a * table + SIGN * b * other``, rounded after each operation."""
    return rounded(rounded(a * table, PRODUCT) + SIGN * rounded(b * other, PRODUCT), PRODUCT)


@triton.jit
def _turn(
    x, out, weight, cos, sin, rows, width, start, pairs, size1, size2, x0, x1, x2, x_step, c0, c1, c2, c_step, s0, s1, s2, s_step, w_step, eps,
    OFFSET: tl.constexpr, SCALE: tl.constexpr, ROUND: tl.constexpr, WEIGHT: tl.constexpr, NORMED: tl.constexpr, OUT: tl.constexpr, HALF: tl.constexpr,
    PAIRS_IN: tl.constexpr, PAIRS_OUT: tl.constexpr, REVERSE: tl.constexpr, COMPUTE: tl.constexpr, PRODUCT: tl.constexpr, ROTATED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Rows of one tensor: `pairs` pairs from `start` on turn, the others pass."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    pair, rest = tl.arange(0, BLOCK)[None, :], tl.arange(0, REST)[None, :]
    here, left = (row < rows) & (pair < pairs), (row < rows) & (rest < width - 2 * pairs)
    x = rows_of(x, row, size1, size2, x0, x1, x2)
    cos = rows_of(cos, row, size1, size2, c0, c1, c2)
    sin = rows_of(sin, row, size1, size2, s0, s1, s2)
    a_at, b_at = start + (2 * pair if PAIRS_IN else pair), start + (2 * pair + 1 if PAIRS_IN else pair + pairs)
    a_out, b_out = (2 * pair if PAIRS_OUT else pair), (2 * pair + 1 if PAIRS_OUT else pair + pairs)
    r_at = tl.where(rest < start, rest, rest + 2 * pairs)
    a = widen(tl.load(x + a_at * x_step, mask=here, other=0.0))
    b = widen(tl.load(x + b_at * x_step, mask=here, other=0.0))
    r = widen(tl.load(x + r_at * x_step, mask=left, other=0.0))
    if weight is not None:
        squares = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1) + tl.sum(r * r, axis=1)
        w = moved(vector(weight, tl.where(pair < pairs, a_at, width), width, w_step), WEIGHT, OFFSET)
        a = rounded(scaled(a, squares, w, width, eps, SCALE, ROUND, NORMED), OUT)
        w = moved(vector(weight, tl.where(pair < pairs, b_at, width), width, w_step), WEIGHT, OFFSET)
        b = rounded(scaled(b, squares, w, width, eps, SCALE, ROUND, NORMED), OUT)
        w = moved(vector(weight, r_at, width, w_step), WEIGHT, OFFSET)
        r = rounded(scaled(r, squares, w, width, eps, SCALE, ROUND, NORMED), OUT)
    a, b = rounded(a, COMPUTE), rounded(b, COMPUTE)
    cos_a = widen(tl.load(cos + (pair if HALF else a_out) * c_step, mask=here, other=0.0))
    sin_a = widen(tl.load(sin + (pair if HALF else a_out) * s_step, mask=here, other=0.0))
    cos_b = widen(tl.load(cos + (pair if HALF else b_out) * c_step, mask=here, other=0.0))
    sin_b = widen(tl.load(sin + (pair if HALF else b_out) * s_step, mask=here, other=0.0))
    first = rounded(_product(a, cos_a, b, sin_a, PRODUCT, 1.0 if REVERSE else -1.0), ROTATED)
    second = rounded(_product(b, cos_b, a, sin_b, PRODUCT, -1.0 if REVERSE else 1.0), ROTATED)
    out += row.to(tl.int64) * width
    tl.store(out + start + a_out, narrow(first, out.dtype.element_ty), mask=here)
    tl.store(out + start + b_out, narrow(second, out.dtype.element_ty), mask=here)
    tl.store(out + r_at, narrow(r, out.dtype.element_ty), mask=left)


@triton.jit
def turn(
    q, k, q_out, k_out, q_weight, k_weight, cos, sin, q_rows, k_rows, q_width, k_width, q_start, k_start, pairs,
    q_size1, q_size2, q0, q1, q2, q_step, qc0, qc1, qc2, qs0, qs1, qs2, k_size1, k_size2, k0, k1, k2, k_step, kc0, kc1, kc2, ks0, ks1, ks2,
    c_step, s_step, q_w_step, k_w_step, eps,
    OFFSET: tl.constexpr, SCALE: tl.constexpr, ROUND: tl.constexpr, WEIGHT: tl.constexpr, NORMED: tl.constexpr, OUT: tl.constexpr, HALF: tl.constexpr,
    PAIRS_IN: tl.constexpr, PAIRS_OUT: tl.constexpr, REVERSE: tl.constexpr, COMPUTE: tl.constexpr, PRODUCT: tl.constexpr, ROTATED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Queries in the programs of the grid's first column, keys in those of the second; without keys there is one column."""
    if tl.program_id(1) == 0:
        _turn(
            q, q_out, q_weight, cos, sin, q_rows, q_width, q_start, pairs, q_size1, q_size2, q0, q1, q2, q_step, qc0, qc1, qc2, c_step, qs0, qs1, qs2, s_step,
            q_w_step, eps, OFFSET, SCALE, ROUND, WEIGHT, NORMED, OUT, HALF, PAIRS_IN, PAIRS_OUT, REVERSE, COMPUTE, PRODUCT, ROTATED, ROWS, BLOCK, REST,
        )  # fmt: skip
    elif k is not None:
        _turn(
            k, k_out, k_weight, cos, sin, k_rows, k_width, k_start, pairs, k_size1, k_size2, k0, k1, k2, k_step, kc0, kc1, kc2, c_step, ks0, ks1, ks2, s_step,
            k_w_step, eps, OFFSET, SCALE, ROUND, WEIGHT, NORMED, OUT, HALF, PAIRS_IN, PAIRS_OUT, REVERSE, COMPUTE, PRODUCT, ROTATED, ROWS, BLOCK, REST,
        )  # fmt: skip


@dataclass(frozen=True)
class Norm:
    """The norm before a rotation: weights of queries and keys, and attributes of `rms_norm`."""

    q_weight: Tensor
    k_weight: Tensor
    eps: float
    offset: float
    compute_dtype: torch.dtype | None
    round_dtype: torch.dtype | None
    weight_dtype: torch.dtype | None
    out_dtype: torch.dtype | None


@dataclass(frozen=True)
class Spelling:
    """How pairs lie and where values are rounded; see `rotate`."""

    half: int
    interleaved: int
    interleaved_out: int
    reverse: int
    compute_dtype: torch.dtype | None = None
    out_dtype: torch.dtype | None = None


def turned(q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, how: Spelling, tails: tuple[int, int], norm: Norm | None = None) -> tuple[Tensor, ...]:
    """`rotate` of one tensor or of two, fresh and contiguous."""
    normed, constants = _norm_constants(q, norm)
    pairs = cos.shape[-1] // (1 if how.half else 2)
    product = torch.promote_types(how.compute_dtype or normed, cos.dtype)
    rotated = how.out_dtype or product
    given = [x for x in (q, k) if x is not None]
    outs = [torch.empty(x.shape, dtype=rotated if x.shape[-1] == 2 * pairs else torch.promote_types(rotated, normed), device=x.device) for x in given]
    arguments: dict[str, Any] = {"k": None, "k_out": None, "q_weight": None, "k_weight": None, "cos": cos, "sin": sin, "pairs": pairs}
    arguments |= {n: 1 for n in turn.arg_names if n.startswith("k_") and n not in arguments} | dict.fromkeys(("kc0", "kc1", "kc2", "ks0", "ks1", "ks2"), 0)
    arguments |= {"k0": 0, "k1": 0, "k2": 0, "c_step": cos.stride(-1), "s_step": sin.stride(-1), "q_w_step": 1, "eps": 0.0 if norm is None else norm.eps}
    for name, x, out, tail in zip("qk", given, outs, tails, strict=False):
        arguments |= _rows_of(name, x, out, cos, sin, pairs, tail)
    if norm is not None:
        weights = {"q_weight": norm.q_weight, "k_weight": norm.k_weight}
        arguments |= weights | {"q_w_step": norm.q_weight.stride(0), "k_w_step": norm.k_weight.stride(0)}
    rest = max(x.shape[-1] for x in given) - 2 * pairs
    block, beside = triton.next_power_of_2(pairs), triton.next_power_of_2(max(rest, 1))
    rows = rows_at_once(block, beside)
    columns = triton.cdiv(max(arguments["q_rows"], arguments["k_rows"] if k is not None else 0), rows)
    if columns:
        assert max(o.numel() for o in outs) // min(o.shape[-1] for o in outs) < 2**31, "rows are numbered in 32 bits"
        constants |= {"HALF": how.half, "PAIRS_IN": how.interleaved, "PAIRS_OUT": how.interleaved_out, "REVERSE": how.reverse}
        constants |= {"COMPUTE": _type(how.compute_dtype), "PRODUCT": _type(product), "ROTATED": _type(rotated), "ROWS": rows, "BLOCK": block, "REST": beside}
        with torch.cuda.device_of(q):
            turn[(columns, len(given))](**arguments, **constants, **OPTIONS)
    return tuple(outs)


# Without fusion products round where the reference rounds.
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}


def rows_at_once(block: int, rest: int) -> int:
    """Rows of a program: 512 elements to a tile; twice as many spill registers where no step is one (seen in compiled code for
    sm_90). Not tuned: no timing has been taken on a GPU yet."""
    return max(1, 512 // max(block, rest))


def _rows_of(name: str, x: Tensor, out: Tensor, cos: Tensor, sin: Tensor, pairs: int, tail: int) -> dict[str, Any]:
    """What the kernel needs to know of one tensor."""
    tables = [t.expand(*x.shape[:-1], t.shape[-1]) for t in (cos, sin)]
    seen = Rows.of(x, *tables)
    strides = zip((f"{name}{{}}", f"{name}c{{}}", f"{name}s{{}}"), seen.strides, strict=True)
    found = {template.format(i): step for template, steps in strides for i, step in enumerate(steps)}
    rows, width = (0 if x.shape[-1] == 0 else x.numel() // x.shape[-1]), x.shape[-1]
    found |= {f"{name}_size1": seen.sizes[1], f"{name}_size2": seen.sizes[2], f"{name}_step": seen.tensors[0].stride(-1), name: seen.tensors[0]}
    return found | {f"{name}_out": out, f"{name}_rows": rows, f"{name}_width": width, f"{name}_start": width - 2 * pairs if tail else 0}


def _norm_constants(q: Tensor, norm: Norm | None) -> tuple[torch.dtype, dict[str, Any]]:
    """The dtype that is rotated, and the norm's constants."""
    if norm is None:
        return q.dtype, {"OFFSET": 0.0, "SCALE": None, "ROUND": None, "WEIGHT": None, "NORMED": None, "OUT": None}
    held = norm.weight_dtype or norm.q_weight.dtype
    product = torch.promote_types(norm.round_dtype or norm.compute_dtype or q.dtype, held)
    constants = {
        "OFFSET": float(norm.offset),
        "SCALE": None,
        "ROUND": _type(norm.round_dtype),
        "WEIGHT": _type(held),
        "NORMED": _type(product),
        "OUT": _type(norm.out_dtype),
    }
    return norm.out_dtype or product, constants


def _type(dtype: torch.dtype | None) -> tl.dtype | None:
    return None if dtype is None else TYPES[dtype]


# --- launches, for tests that compile without a GPU ----------------------------------------------------

_TILES = ((16, 1), (64, 1), (512, 1), (32, 128), (64, 1024))


def launches(keys: bool, norm: bool) -> tuple[Launch, ...]:
    """Every size of tiles for one dtype, and for one size dtypes, layouts of memory and layouts of pairs."""
    bf16, fp16, fp32 = tl.bfloat16, tl.float16, tl.float32
    found = [_launch(keys, norm, tile, bf16, bf16) for tile in _TILES]
    found += [_launch(keys, norm, (64, 1), t, table, layout) for t, table in ((fp32, fp32), (fp16, fp16), (bf16, fp32)) for layout in ("dense", "strided")]
    found += [_launch(keys, norm, (32, 128), bf16, bf16, "strided", {"HALF": 1, "PAIRS_IN": 1, "PAIRS_OUT": out, "REVERSE": out}) for out in (0, 1)]
    return tuple(found)


def _launch(
    keys: bool, norm: bool, tile: tuple[int, int], dtype: tl.dtype, table: tl.dtype, layout: str = "dense", pairs: dict[str, int] | None = None
) -> Launch:
    """`layout`: "dense" has steps of one and is aligned."""
    block, rest = tile
    pointers = {"q": dtype, "q_out": dtype, "cos": table, "sin": table, "k": dtype if keys else None, "k_out": dtype if keys else None}
    pointers |= {"q_weight": dtype if norm else None, "k_weight": dtype if norm else None}
    ones = ("q_step", "k_step", "c_step", "s_step", "q_w_step", "k_w_step") if layout == "dense" else ()
    how = {"HALF": 0, "PAIRS_IN": 0, "PAIRS_OUT": 0, "REVERSE": 0, **(pairs or {})}
    normed = {"OFFSET": 0.0, "SCALE": None, "ROUND": dtype if norm else None, "WEIGHT": dtype if norm else None, "NORMED": dtype if norm else None, "OUT": None}
    wide = tl.float32 if tl.float32 in (dtype, table) else dtype
    constexprs: dict[str, Any] = {n: None for n, t in pointers.items() if t is None} | dict.fromkeys(ones, 1) | how | normed | {
        "COMPUTE": None, "PRODUCT": wide, "ROTATED": dtype, "ROWS": rows_at_once(block, rest), "BLOCK": block, "REST": rest,
    }  # fmt: skip
    signature = {n: f"*{pointers[n]}" if n in pointers else "fp32" if n == "eps" else "i32" for n in turn.arg_names if n not in constexprs}
    aligned = tuple(n for n in signature if n not in ("q_rows", "k_rows", "eps", "pairs")) if layout == "dense" else ()
    name = f"{block}+{rest}-{layout}-{dtype}-tables_{table}-{''.join(f'{n}{v}' for n, v in how.items())}"
    return Launch(name, turn, signature, constexprs, OPTIONS, aligned)
