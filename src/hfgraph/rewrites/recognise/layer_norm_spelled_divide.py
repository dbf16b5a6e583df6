"""LayerNorm in elementary operators: values less their mean, divided by the root of their mean square."""

import torch

from hfgraph.graph.inputs import Inputs, Scalar
from hfgraph.graph.rule import Rule
from hfgraph.kernels.layer_norm import layer_norm


def pattern(x, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + eps)


def replacement(x, eps):
    return layer_norm(x, None, None, eps, spelled=1, divide=1)


RULE = Rule(pattern, replacement, inputs=Inputs(x="... D", eps=Scalar(1e-5)))
