"""Only the mean square is computed in a wider dtype; the values are divided by its root as they are, and promoted."""

import torch

from hfgraph.graph.inputs import Dtype, Inputs, Scalar
from hfgraph.graph.rule import Rule
from hfgraph.kernels.rms_norm import rms_norm


def pattern(x, eps, dtype):
    return x / torch.sqrt(x.to(dtype).pow(2).mean(-1, keepdim=True) + eps)


def replacement(x, eps, dtype):
    return rms_norm(x, None, eps, compute_dtype=dtype, divide=1)


def when(x, eps, dtype):
    return dtype.is_floating_point and torch.promote_types(x.dtype, dtype) == dtype


RULE = Rule(pattern, replacement, inputs=Inputs(x="... D", eps=Scalar(1e-6), dtype=Dtype(torch.float32)), when=when)
