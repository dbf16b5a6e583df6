"""Softcap: values bent smoothly into an interval, as models do with their last logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor.placement_types import Shard

from hfgraph.graph.inputs import Inputs, Scalar
from hfgraph.graph.op import Cost, op


def _cost(x: Tensor, cap: float) -> Cost:
    del cap
    return Cost(flops=3 * x.numel(), bytes=2 * x.numel() * x.element_size())


@op(
    cost=_cost,
    inputs=Inputs(x="... D", cap=Scalar(3.0)),
    shardings={name: ((Shard(dim),), (Shard(dim),)) for dim, name in enumerate(("batch", "tokens", "features"))},
)
def softcap(x: Tensor, cap: float) -> Tensor:
    """``tanh(x / cap) * cap``, in three operations, each rounded to the dtype of x.

    Args:
        x: (..., D), usually logits.
        cap: the bound that no result exceeds.

    Returns:
        (..., D), in the dtype of x.
    """
    return torch.tanh(x / cap) * cap
