"""Short convolution: each channel of a token with the same channel of the few tokens before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor.placement_types import Replicate, Shard

from hfgraph.graph.inputs import Inputs, Switch
from hfgraph.graph.op import Cost, op


def _cost(x: Tensor, weight: Tensor, bias: Tensor | None, padded: int = 1) -> Cost:
    taps = weight.shape[2]
    places = x.shape[0] * x.shape[1] * (x.shape[2] if padded else x.shape[2] - taps + 1)
    elements = x.numel() + weight.numel() + places + (0 if bias is None else bias.numel())
    return Cost(flops=2 * places * taps, bytes=elements * x.element_size())


@op(
    cost=_cost,
    inputs=Inputs(x="B D 11", weight="D 1 4", bias="D?", padded=Switch()),
    shardings={"batch": ((Shard(0), Replicate(), Replicate()), (Shard(0),)), "channels": ((Shard(1), Shard(0), Shard(0)), (Shard(1),))},
)
def short_conv(x: Tensor, weight: Tensor, bias: Tensor | None, padded: int = 1) -> Tensor:
    """``sum(weight[c, k] * x[c, t - K + 1 + k], k) + bias[c]`` for each channel c and token t (Fu et al., 2022, arXiv:2212.14052).

    In float32 it is a sum of products, which Inductor fuses with what stands around it: 1.7 to 3.4 times as fast on two CPU threads as a convolution
    (`benchmarks/results/short-conv-cpu.json`). In half precision a convolution is at least as fast.

    Args:
        x: (B, C, T).
        weight: (C, 1, K).
        bias: (C).
        padded: 1 where zeros stand before the first token; 0 where `x` begins with the K - 1 tokens before it.

    Returns:
        (B, C, T), or (B, C, T - K + 1) where not padded, in the dtype of x, contiguous as a convolution's.
    """
    taps, length = weight.shape[2], x.shape[2]
    if x.dtype is not torch.float32:
        y = F.conv1d(x, weight, bias, padding=(taps - 1) * padded, groups=weight.shape[0])
        return y[..., :length].contiguous() if padded else y
    if padded:  # not by F.pad, which turns symbols into numbers
        x = torch.cat([x.new_zeros(*x.shape[:2], taps - 1), x], -1)
    length = x.shape[2] - taps + 1
    y = x[..., :length] * weight[:, 0, 0, None]
    for k in range(1, taps):
        y = y + x[..., k : k + length] * weight[:, 0, k, None]
    return (y if bias is None else y + bias[:, None]).contiguous()
