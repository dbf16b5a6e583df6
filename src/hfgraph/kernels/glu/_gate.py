"""What a gate and what it gates go through, value by value: Triton functions for every kernel that has both at hand."""

from __future__ import annotations

import triton
import triton.language as tl

from hfgraph.kernels.floats import rounded


@triton.jit
def clamped(x, low, high, TYPE: tl.constexpr):
    """NaN stays; a bound takes part in the dtype of what it bounds."""
    if low is not None:
        x = tl.where(x < low, low, x)
    if high is not None:
        x = tl.where(x > high, high, x)
    return rounded(x, TYPE)


@triton.jit
def activated(x, alpha, ACTIVATION: tl.constexpr, TYPE: tl.constexpr):
    """The reference's activation of values in float32, rounded where it rounds: once, but for those of several operations."""
    if ACTIVATION == "silu":
        y = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # 1 + tanh(u) is 2 / (1 + exp(-2 * u)), which loses nothing where the sum nearly vanishes.
        y = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * (x * x * x))))
    elif ACTIVATION == "gelu_new":
        # pow(3.0) rounds both products in bfloat16, and the last alone in float16.
        square = x * x if tl.float16 == TYPE else rounded(x * x, TYPE)
        cube = rounded(square * x, TYPE)
        inner = rounded(x + rounded(0.044715 * cube, TYPE), TYPE)
        # 1 + tanh(u) as 2 / (1 + exp(-2 * u)), but tanh alone is rounded first.
        bent = rounded(2.0 / (1.0 + tl.exp(-2.0 * rounded(0.7978845608028654 * inner, TYPE))) - 1.0, TYPE)
        y = rounded(0.5 * x, TYPE) * rounded(1.0 + bent, TYPE)
    elif ACTIVATION == "relu2":
        y = tl.where(x < 0.0, 0.0, x)
        y = y * y
    else:
        tl.static_assert(ACTIVATION == "swish")
        y = x * rounded(1.0 / (1.0 + tl.exp(-rounded(x * alpha, TYPE))), TYPE)
    return rounded(y, TYPE)


@triton.jit
def gate_times_up(
    gate, up, alpha, gate_max, act_max, up_min, up_max,
    ACTIVATION: tl.constexpr, OFFSET: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """The op `glu` of values in float32, rounded where it rounds; GATE, UP and PRODUCT are the dtypes of the steps."""
    a = activated(clamped(gate, None, gate_max, GATE), alpha, ACTIVATION, GATE)
    a = clamped(a, None, act_max, GATE)
    u = clamped(up, up_min, up_max, UP)
    if OFFSET != 0.0:
        u = rounded(u + OFFSET, UP)
    return rounded(a * u, PRODUCT)
