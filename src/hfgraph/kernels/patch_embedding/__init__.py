"""Patch embedding: an image, or a film, cut into patches that do not overlap, each a row of one matmul."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor.placement_types import Replicate, Shard

from hfgraph.graph.inputs import Inputs
from hfgraph.graph.op import Cost, op


def _cost(x: Tensor, weight: Tensor, bias: Tensor | None) -> Cost:
    """Two operations for each weight and patch; a bias is little beside them."""
    places = x.shape[0]
    for size, step in zip(x.shape[2:], weight.shape[2:], strict=True):
        places = places * (size // step)
    elements = x.numel() + weight.numel() + places * weight.shape[0] + (0 if bias is None else bias.numel())
    return Cost(flops=2 * places * weight.numel(), bytes=elements * x.element_size())


@op(
    cost=_cost,
    inputs=Inputs(x="B 3 28 22", weight="D 3 7 5", bias="D?"),
    shardings={"batch": ((Shard(0), Replicate(), Replicate()), (Shard(0),)), "features": ((Replicate(), Shard(0), Shard(0)), (Shard(1),))},
)
def patch_embedding(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``patches(x) @ weight.T + bias``, a convolution whose stride is its kernel (Dosovitskiy et al., 2020, arXiv:2010.11929).

    Args:
        x: (N, C, *S) with one, two or three dims of size S; what is left over at their ends is not read.
        weight: (E, C, *K), with sizes K of a patch.
        bias: (E).

    Returns:
        (N, E, *(S // K)), contiguous, in the dtype of x.
    """
    kernel = weight.shape[2:]
    for i, step in enumerate(kernel):
        dim = 2 + 2 * i
        count = x.shape[dim] // step
        x = x.narrow(dim, 0, count * step).unflatten(dim, (count, step))
    rank = len(kernel)
    cut = x.permute(0, *range(2, 2 + 2 * rank, 2), 1, *range(3, 3 + 2 * rank, 2))
    rows = cut.reshape(*cut.shape[: rank + 1], math.prod(weight.shape[1:]))
    return F.linear(rows, weight.flatten(1), bias).movedim(-1, 1).contiguous()
