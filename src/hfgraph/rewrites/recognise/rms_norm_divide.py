"""The values are divided by the root of their mean square."""

import torch

from hfgraph.graph.inputs import Inputs, Scalar
from hfgraph.graph.rule import Rule
from hfgraph.kernels.rms_norm import rms_norm


def pattern(x, eps):
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def replacement(x, eps):
    return rms_norm(x, None, eps, divide=1)


RULE = Rule(pattern, replacement, inputs=Inputs(x="... D", eps=Scalar(1e-6)))
