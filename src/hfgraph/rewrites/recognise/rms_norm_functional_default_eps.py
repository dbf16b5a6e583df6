"""`torch.nn.functional.rms_norm` without eps: ATen takes the machine epsilon of the dtype it computes in."""

import torch
import torch.nn.functional as F

from hfgraph.graph.inputs import Inputs
from hfgraph.graph.rule import Rule
from hfgraph.kernels.rms_norm import rms_norm


def pattern(x, weight):
    return F.rms_norm(x, (x.shape[-1],), weight, None)


def replacement(x, weight):
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    compute = torch.float32 if narrow else x.dtype
    return rms_norm(x, weight, torch.finfo(compute).eps, compute_dtype=compute if narrow else None, out_dtype=x.dtype if narrow else None)


def when(x, weight):
    return weight is None or weight.dtype == x.dtype


RULE = Rule(pattern, replacement, inputs=Inputs(x="... D", weight="D?"), when=when)
