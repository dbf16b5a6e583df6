"""`torch.nn.functional.layer_norm` and `torch.nn.LayerNorm`, over the last dim."""

import torch.nn.functional as F

from hfgraph.graph.inputs import Inputs, Scalar
from hfgraph.graph.rule import Rule
from hfgraph.kernels.layer_norm import layer_norm


def pattern(x, weight, bias, eps):
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def replacement(x, weight, bias, eps):
    return layer_norm(x, weight, bias, eps)


RULE = Rule(pattern, replacement, inputs=Inputs(x="... D", weight="D?", bias="D?", eps=Scalar(1e-5)))
