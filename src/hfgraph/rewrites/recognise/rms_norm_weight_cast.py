"""The weight is cast before the offset is added to it."""

import torch

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.kernels.rms_norm import rms_norm


def pattern(x, weight, eps, offset, compute, scale, rounded, out, dtype, divide):
    return rms_norm(x, weight.to(dtype), eps, offset, compute, scale, rounded, None, out, divide)


def replacement(x, weight, eps, offset, compute, scale, rounded, out, dtype, divide):
    return rms_norm(x, weight, eps, offset, compute, scale, rounded, dtype, out, divide)


def when(x, weight, eps, offset, compute, scale, rounded, out, dtype, divide):
    return weight.is_floating_point() and dtype.is_floating_point


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        x="... D",
        weight="D",
        eps=Scalar(1e-6),
        offset=Scalar(0.0),
        compute=Dtype(optional=True),
        scale=Dtype(optional=True),
        rounded=Dtype(optional=True),
        out=Dtype(optional=True),
        dtype=Dtype(torch.float32),
        divide=Switch(),
    ),
    when=when,
)
