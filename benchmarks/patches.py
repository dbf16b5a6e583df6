"""Patch embeddings: the convolution as models write it, eagerly and compiled by Inductor, and the op's matmul, compiled.

    python benchmarks/patches.py [--shapes images-16 film-rows] [--dtypes bf16 fp32] [--busy] [--json FILE]

Correctness comes first, then candidates take turns, as in `norms.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from cpu import BASELINE, EAGER, against_a_convolution
from norms import DTYPES, Run
from torch import Tensor

from hfgraph.kernels import all_ops

OP = all_ops()["patch_embedding"]
# Images (or films) and weight: towers of usual sizes, and films that a processor has cut into rows of patches.
SHAPES = {
    "images-16": ((1, 3, 224, 224), (768, 3, 16, 16)), "images-14": ((2, 3, 378, 378), (1152, 3, 14, 14)),
    "film": ((1, 3, 16, 224, 224), (768, 3, 2, 16, 16)), "film-rows": ((1024, 3, 2, 14, 14), (1280, 3, 2, 14, 14)),
}  # fmt: skip


def candidates(shape: str, dtype: str) -> tuple[Tensor, dict[str, Run]]:
    """The exact result, and what can run, by name."""
    generator = torch.Generator().manual_seed(0)
    image, kernel = SHAPES[shape]
    x, weight, bias = (torch.randn(s, generator=generator).to(DTYPES[dtype]) for s in (image, kernel, kernel[:1]))
    torch._dynamo.reset()
    convolution = F.conv3d if x.ndim == 5 else F.conv2d
    stride = tuple(weight.shape[2:])
    compiled = torch.compile(lambda x: convolution(x, weight, bias, stride=stride), dynamic=False)
    matmul = torch.compile(OP.reference, dynamic=False)
    return OP.reference(x.double(), weight.double(), bias.double()), {
        EAGER: lambda: convolution(x, weight, bias, stride=stride),
        BASELINE: lambda: compiled(x),
        "matmul, compiled": lambda: matmul(x, weight, bias),
    }


if __name__ == "__main__":
    against_a_convolution(__doc__, "patch_embedding", "patch embeddings", SHAPES, candidates)
