"""`torch.nn.functional.rms_norm` and `torch.nn.RMSNorm`, over the last dim."""

import torch
import torch.nn.functional as F

from hfgraph.graph.inputs import Inputs, Scalar
from hfgraph.graph.rule import Rule
from hfgraph.kernels.rms_norm import rms_norm


def pattern(x, weight, eps):
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def replacement(x, weight, eps):
    """ATen computes half precision in float32 and rounds once, at the end."""
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    return rms_norm(x, weight, eps, compute_dtype=torch.float32 if narrow else None, out_dtype=x.dtype if narrow else None)


def when(x, weight, eps):
    return weight is None or weight.dtype == x.dtype


RULE = Rule(pattern, replacement, inputs=Inputs(x="... D", weight="D?", eps=Scalar(1e-6)), when=when)
