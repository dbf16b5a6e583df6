"""The weight is cast before the offset is added to it."""

import torch

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.kernels.layer_norm import layer_norm


def pattern(x, weight, bias, eps, offset, compute, rounded, out, dtype, spelled, divide):
    return layer_norm(x, weight.to(dtype), bias, eps, offset, compute, rounded, None, out, spelled, divide)


def replacement(x, weight, bias, eps, offset, compute, rounded, out, dtype, spelled, divide):
    return layer_norm(x, weight, bias, eps, offset, compute, rounded, dtype, out, spelled, divide)


def when(x, weight, bias, eps, offset, compute, rounded, out, dtype, spelled, divide):
    return weight.is_floating_point() and dtype.is_floating_point


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        x="... D",
        weight="D",
        bias="D?",
        eps=Scalar(1e-5),
        offset=Scalar(0.0),
        compute=Dtype(optional=True),
        rounded=Dtype(optional=True),
        out=Dtype(optional=True),
        dtype=Dtype(torch.float32),
        spelled=Switch(),
        divide=Switch(),
    ),
    when=when,
)
