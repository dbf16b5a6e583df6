"""The inverse root is rounded to the values' dtype before it multiplies them."""

import torch

from hfgraph.graph.inputs import Dtype, Inputs, Scalar
from hfgraph.graph.rule import Rule
from hfgraph.kernels.rms_norm import rms_norm


def pattern(x, eps, dtype, narrow):
    return x * torch.rsqrt(x.to(dtype).pow(2).mean(-1, keepdim=True) + eps).to(narrow)


def replacement(x, eps, dtype, narrow):
    return rms_norm(x, None, eps, compute_dtype=dtype, scale_dtype=narrow)


def when(x, eps, dtype, narrow):
    return narrow == x.dtype and torch.promote_types(x.dtype, dtype) == dtype


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(x="... D", eps=Scalar(1e-6), dtype=Dtype(torch.float32), narrow=Dtype(torch.bfloat16)),
    when=when,
)
