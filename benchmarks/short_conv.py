"""Short convolutions: as models write them, with what stands around them, eagerly and compiled by Inductor, and with the op, compiled.

    python benchmarks/short_conv.py [--shapes tokens-512 one-token] [--dtypes bf16 fp32] [--busy] [--json FILE]

Correctness comes first, then candidates take turns, as in `norms.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from cpu import BASELINE, EAGER, against_a_convolution
from norms import DTYPES, Run
from torch import Tensor

from hfgraph.kernels import all_ops

OP = all_ops()["short_conv"]
# Sequences, tokens, channels: prompts, a batch of short ones, and one token behind what a cache kept.
SHAPES = {"tokens-512": (1, 512, 2048), "tokens-128": (1, 128, 6144), "batch-8": (8, 32, 2048), "tokens-16": (1, 16, 2048), "one-token": (8, 1, 2048)}
TAPS = 4


def layer(convolution: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution between the transposes and the activation that models have around it: (B, T, C)."""
    return F.silu(convolution(x.transpose(1, 2), weight, bias)).transpose(1, 2)


def as_written(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, C, T): zeros before many tokens, nothing where a cache's stand before one."""
    one = x.shape[2] == TAPS
    return F.conv1d(x, weight, bias, padding=0 if one else TAPS - 1, groups=weight.shape[0])[..., : 1 if one else x.shape[2]]


def as_op(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return OP.reference(x, weight, bias, int(x.shape[2] != TAPS))


def candidates(shape: str, dtype: str) -> tuple[Tensor, dict[str, Run]]:
    """The exact result, and what can run, by name."""
    generator = torch.Generator().manual_seed(0)
    batch, tokens, channels = SHAPES[shape]
    sizes = ((batch, tokens if tokens > 1 else TAPS, channels), (channels, 1, TAPS), (channels,))
    x, weight, bias = (torch.randn(s, generator=generator).to(DTYPES[dtype]) for s in sizes)
    torch._dynamo.reset()
    convolution = torch.compile(lambda x, w, b: layer(as_written, x, w, b), dynamic=False)
    op = torch.compile(lambda x, w, b: layer(as_op, x, w, b), dynamic=False)
    return layer(as_written, x.double(), weight.double(), bias.double()), {
        EAGER: lambda: layer(as_written, x, weight, bias),
        BASELINE: lambda: convolution(x, weight, bias),
        "op, compiled": lambda: op(x, weight, bias),
    }


if __name__ == "__main__":
    against_a_convolution(__doc__, "short_conv", "short convolutions", SHAPES, candidates)
