"""Gated MLP: an activated gate times what it gates, with the clamps, offset and casts around them as attributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor.placement_types import Shard

from hfgraph.graph.inputs import Choice, Dtype, Inputs, Scalar
from hfgraph.graph.op import Cost, op
from hfgraph.graph.values import same_shape

ACTIVATIONS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "silu": lambda x, alpha: F.silu(x),
    "gelu": lambda x, alpha: F.gelu(x),
    "gelu_tanh": lambda x, alpha: F.gelu(x, approximate="tanh"),
    "gelu_new": lambda x, alpha: 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x.pow(3.0)))),
    "relu2": lambda x, alpha: F.relu(x).pow(2),
    "swish": lambda x, alpha: x * torch.sigmoid(x * alpha),
}
CHOICE = Choice(tuple(ACTIVATIONS))
# Floating-point operations of one element, each function of the mathematical library counted as one.
_FLOPS = {"silu": 4, "gelu": 5, "gelu_tanh": 9, "gelu_new": 9, "relu2": 2, "swish": 5}


def _cost(
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
) -> Cost:
    del alpha
    steps = sum(s is not None for s in (gate_max, act_max, up_min, up_max)) + bool(up_offset)
    written = out_dtype or compute_dtype or torch.promote_types(gate.dtype, up.dtype)
    moved = gate.element_size() + up.element_size() + written.itemsize
    return Cost(flops=(_FLOPS[activation] + 1 + steps) * gate.numel(), bytes=moved * gate.numel())


@op(
    cost=_cost,
    inputs=Inputs(
        gate="... D",
        up="... D",
        activation=CHOICE,
        alpha=Scalar(1.7),
        gate_max=Scalar(1.2, optional=True),
        act_max=Scalar(0.6, optional=True),
        up_min=Scalar(-0.9, optional=True),
        up_max=Scalar(1.1, optional=True),
        up_offset=Scalar(1.0),
        compute_dtype=Dtype(optional=True),
        out_dtype=Dtype(optional=True),
    ),
    shardings={name: ((Shard(dim), Shard(dim)), (Shard(dim),)) for dim, name in enumerate(("batch", "tokens", "features"))},
)
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
    """``act(min(gate, a)) * (clip(up) + b)``, element by element (Shazeer, 2020, arXiv:2002.05202).

    Each step is taken as the traced code takes it, rounded to the dtype of what it works on; None means that there is no such step.

    Args:
        gate: (..., D), often a strided part of a packed projection.
        up: (..., D), what is gated.
        activation: `silu`, `gelu` (by the error function), `gelu_tanh`, `relu2` (squared), or `swish`: ``x * sigmoid(alpha * x)`` in
            three operations, each rounded, where `silu` rounds once.
        alpha: of `swish`; the others take none.
        gate_max: the gate is clamped to it from above.
        act_max: the activated gate is clamped to it from above.
        up_min, up_max: up is clamped to them.
        up_offset: added to up after clamping.
        compute_dtype: gate and up are cast to it before everything else.
        out_dtype: the product is cast to it.

    Returns:
        (..., D), in `out_dtype`, or in the dtype that PyTorch's promotion gives.
    """
    g, u = (gate, up) if compute_dtype is None else (gate.to(compute_dtype), up.to(compute_dtype))
    g = g if gate_max is None else g.clamp(max=gate_max)
    a = ACTIVATIONS[activation](g, alpha)
    a = a if act_max is None else a.clamp(max=act_max)
    u = u if up_min is None and up_max is None else u.clamp(up_min, up_max)
    y = a * (u + up_offset if up_offset else u)
    return y if out_dtype is None else y.to(out_dtype)


def _fits_triton(
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
) -> bool:
    """Two tensors of one shape, in any layout, and dtypes of at most 32 bits."""
    del alpha, gate_max, act_max, up_min, up_max, up_offset
    floats = (torch.float32, torch.float16, torch.bfloat16)
    narrow = gate.dtype in floats and up.dtype in floats and all(d in (None, *floats) for d in (compute_dtype, out_dtype))
    return narrow and gate.ndim > 0 and activation in ACTIVATIONS and same_shape(gate, up)


glu.impl("triton", device="cuda", load=".triton", when=_fits_triton)
