"""Gated MLP in Triton: float32 arithmetic, any strides, the reference's rounding points.

Gate and up are read through strides, so the halves of a packed projection, side by side or alternating, need no copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hfgraph.kernels.floats import TYPES, narrow, rounded, widen
from hfgraph.kernels.glu._gate import gate_times_up
from hfgraph.kernels.launch import Launch
from hfgraph.kernels.rows import rows_of
from hfgraph.kernels.strides import Rows


@triton.jit
def gated(
    gate, up, out, rows, width, size1, size2, g0, g1, g2, g_step, u0, u1, u2, u_step, alpha, gate_max, act_max, up_min, up_max,
    ACTIVATION: tl.constexpr, OFFSET: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr, PRODUCT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS rows, BLOCK elements of each."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    live = (row < rows) & (column < width)
    g = rounded(widen(tl.load(rows_of(gate, row, size1, size2, g0, g1, g2) + column * g_step, mask=live, other=0.0)), GATE)
    u = rounded(widen(tl.load(rows_of(up, row, size1, size2, u0, u1, u2) + column * u_step, mask=live, other=0.0)), UP)
    y = gate_times_up(g, u, alpha, gate_max, act_max, up_min, up_max, ACTIVATION, OFFSET, GATE, UP, PRODUCT)
    tl.store(out + row.to(tl.int64) * width + column, narrow(y, out.dtype.element_ty), mask=live)


@dataclass(frozen=True)
class Config:
    """How the kernel is cut: rows per program, elements of a row."""

    rows: int
    block: int

    @property
    def options(self) -> dict[str, int]:
        """Triton's own; without fusion sums and products round where the reference does."""
        return {"num_warps": 4, "enable_fp_fusion": False}


# 8 elements to a thread: one 16-byte load in 16 bits. Not tuned: no timing has been taken on a GPU yet.
CONFIGS = (Config(16, 64), Config(4, 256), Config(1, 1024))


def config_for(width: int) -> Config:
    """The narrowest block that holds a row; the widest takes several programs to a row."""
    return next((c for c in CONFIGS if width <= c.block), CONFIGS[-1])


def glu(
    gate: Tensor,
    up: Tensor,
    activation: str = "silu",
    alpha: float = 1.0,
    gate_max: float | None = None,
    act_max: float | None = None,
    up_min: float | None = None,
    up_max: float | None = None,
    up_offset: float = 0.0,
    compute_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The op's reference as one kernel: gate and up (..., D), of one shape; returns (..., D), fresh and contiguous."""
    kinds = (compute_dtype or gate.dtype, compute_dtype or up.dtype)
    product = torch.promote_types(*kinds)
    out = torch.empty(gate.shape, dtype=out_dtype or product, device=gate.device)
    if out.numel() == 0:
        return out
    width = gate.shape[-1]
    seen = Rows.of(gate, up)
    (g, u), (g_strides, u_strides) = seen.tensors, seen.strides
    config = config_for(width)
    rows = out.numel() // width
    assert rows < 2**31, "rows are numbered in 32 bits"
    kernel: Any = gated
    with torch.cuda.device_of(gate):
        kernel[(triton.cdiv(rows, config.rows), triton.cdiv(width, config.block))](
            g, u, out, rows, width, *seen.sizes[1:], *g_strides, g.stride(-1), *u_strides, u.stride(-1),
            float(alpha), *(None if limit is None else float(limit) for limit in (gate_max, act_max, up_min, up_max)),
            ACTIVATION=activation, OFFSET=float(up_offset), GATE=TYPES[kinds[0]], UP=TYPES[kinds[1]], PRODUCT=TYPES[product],
            ROWS=config.rows, BLOCK=config.block, **config.options,
        )  # fmt: skip
    return out


def _launch(config: Config, layout: str, dtype: tl.dtype, activation: str = "silu", *, clamped: bool = False, kind: tl.dtype | None = None) -> Launch:
    """`layout`: "dense" is contiguous and aligned, "packed" has strides over the leading dims, "strided" over the last dim too."""
    kind = kind or dtype
    ones = {"dense": ("size1", "size2", "g_step", "u_step"), "packed": ("size1", "size2", "g_step", "u_step"), "strided": ()}[layout]
    limits = ("gate_max", "act_max", "up_min", "up_max")
    constexprs: dict[str, Any] = dict.fromkeys(ones, 1) | (dict.fromkeys(limits) if not clamped else {}) | {
        "ACTIVATION": activation, "OFFSET": float(clamped), "GATE": kind, "UP": kind, "PRODUCT": kind, "ROWS": config.rows, "BLOCK": config.block,
    }  # fmt: skip
    signature = {n: f"*{dtype}" if n in ("gate", "up", "out") else "fp32" if n in ("alpha", *limits) else "i32" for n in gated.arg_names if n not in constexprs}
    aligned = tuple(n for n in signature if n not in ("rows", "alpha", *limits)) if layout == "dense" else ()
    name = f"{config.rows}x{config.block}-{layout}-{dtype}-in_{kind}-{activation}{'-clamped' if clamped else ''}"
    return Launch(name, gated, signature, constexprs, config.options, aligned)


AOT: tuple[Launch, ...] = (
    *(_launch(config, layout, dtype) for config in CONFIGS for layout in ("dense", "packed", "strided") for dtype in (tl.float32, tl.bfloat16)),
    _launch(CONFIGS[-1], "dense", tl.float16),
    *(_launch(CONFIGS[-1], "packed", tl.bfloat16, activation) for activation in ("gelu", "gelu_tanh", "gelu_new", "relu2", "swish")),
    _launch(CONFIGS[-1], "strided", tl.bfloat16, "swish", clamped=True),
    _launch(CONFIGS[-1], "packed", tl.bfloat16, clamped=True, kind=tl.float32),
)
