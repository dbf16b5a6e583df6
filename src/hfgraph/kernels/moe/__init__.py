"""A mixture of experts: each token through the few gated MLPs that its router chose, and the weighted sum of what they give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor.placement_types import Partial, Replicate, Shard

from hfgraph.graph.inputs import Inputs, Scalar, Switch
from hfgraph.graph.op import Cost, op
from hfgraph.graph.values import same_size
from hfgraph.kernels.glu import ACTIVATIONS, CHOICE, glu
from hfgraph.kernels.moe.fits import cpp_wins, fits_cpp, fits_triton
from hfgraph.kernels.moe.grouped import grouped_mm


def _cost(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, gate_up: Tensor, down: Tensor, *rest: Any, **named: Any) -> Cost:
    """Two products for each choice of each token; every expert is read once, as for many tokens."""
    given = [a for a in (*rest, *named.values()) if isinstance(a, Tensor)]
    pairs = expert_ids.numel()
    moved = sum(t.numel() * t.element_size() for t in (x, x, expert_ids, expert_weights, gate_up, down, *given))
    return Cost(flops=2 * pairs * x.shape[1] * (gate_up.shape[1] + down.shape[2]), bytes=moved)


# Placements of x, ids, weights, gate_up, down and the two biases.
_TOKENS = ((*[Shard(0)] * 3, *[Replicate()] * 4), (Shard(0),))
_CHOICES = ((Replicate(), Shard(1), Shard(1), *[Replicate()] * 4), (Partial(),))
_COLUMNS = ((*[Replicate()] * 4, Shard(1), Replicate(), Shard(1)), (Shard(1),))


@op(
    cost=_cost,
    inputs=Inputs(
        x="T D",
        expert_ids="int T 3",
        expert_weights="T 3",
        gate_up="8 24 D",
        down="8 D 12",
        gate_up_bias="8 24?",
        down_bias="8 D?",
        activation=CHOICE,
        alpha=Scalar(1.7),
        gate_max=Scalar(1.2, optional=True),
        act_max=Scalar(0.6, optional=True),
        up_min=Scalar(-0.9, optional=True),
        up_max=Scalar(1.1, optional=True),
        up_offset=Scalar(1.0),
        interleaved=Switch(),
        weights_first=Switch(),
    ),
    shardings={"tokens": _TOKENS, "choices": _CHOICES, "columns": _COLUMNS},
)
def moe(
    x: Tensor, expert_ids: Tensor, expert_weights: Tensor, gate_up: Tensor, down: Tensor, gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None, activation: str = "silu", alpha: float = 1.0, gate_max: float | None = None, act_max: float | None = None,
    up_min: float | None = None, up_max: float | None = None, up_offset: float = 0.0, interleaved: int = 0, weights_first: int = 0,
) -> Tensor:  # fmt: skip
    """``sum(w[k] * (down[ids[k]] @ glu(gate_up[ids[k]] @ x)), k)`` for each token (Shazeer et al., 2017, arXiv:1701.06538).

    Which experts a token goes to, and with which weights, the router says; it is not part of the op.

    Args:
        x: (T, H).
        expert_ids: (T, K), whole numbers; an expert may be named twice. Where there are no biases, E and more stand for no expert.
        expert_weights: (T, K); weighted results are added up in the wider of its dtype and the experts'.
        gate_up: (E, 2I, H), gates and what they gate, in any layout; (E, I, H) where there is no gate.
        down: (E, H, I), in any layout.
        gate_up_bias, down_bias: (E, 2I) or (E, I), and (E, H).
        activation, alpha, gate_max, act_max, up_min, up_max, up_offset: as in `glu`; without a gate only the first two mean something.
        interleaved: 1 where gates are the even rows of `gate_up`, 0 where they are its first half.
        weights_first: 1 where a token is multiplied by the weight before the first product, 0 where the result is.

    Returns:
        (T, H), in x's dtype.
    """
    pairs, order = torch.sort(expert_ids.reshape(-1))
    ends = torch.searchsorted(pairs, torch.arange(gate_up.shape[0], device=pairs.device, dtype=pairs.dtype), right=True, out_int32=True)
    weights = expert_weights.reshape(-1)[order].unsqueeze(-1)
    rows = x[order // expert_ids.shape[1]]
    rows = (rows * weights if weights_first else rows).to(gate_up.dtype)
    rows = grouped_mm(rows, gate_up.transpose(1, 2), ends)
    rows = rows if gate_up_bias is None else rows + gate_up_bias[pairs]
    if same_size(gate_up.shape[1], down.shape[2]):
        rows = ACTIVATIONS[activation](rows, alpha)
    else:
        gate, up = (rows[:, ::2], rows[:, 1::2]) if interleaved else rows.chunk(2, -1)
        rows = glu.reference(gate, up, activation, alpha, gate_max, act_max, up_min, up_max, up_offset)
    rows = grouped_mm(rows.contiguous(), down.transpose(1, 2), ends)
    rows = rows if down_bias is None else rows + down_bias[pairs]
    rows = rows if weights_first else rows * weights
    apart = torch.zeros_like(rows).index_copy(0, order, rows)
    return apart.reshape(expert_ids.shape[0], expert_ids.shape[1], down.shape[1]).sum(1).to(x.dtype)


moe.impl("triton", device="cuda", load=".triton", when=fits_triton)
moe.impl("cpp", device="cpu", load=".cpp", when=fits_cpp, auto=cpp_wins, native=True)
