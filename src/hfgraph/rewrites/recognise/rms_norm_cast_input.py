"""The input is cast before everything else: absorbed as the dtype of computation."""

import torch

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.kernels.rms_norm import rms_norm


def pattern(x, dtype, weight, eps, offset, scale, rounded, cast, out, divide):
    return rms_norm(x.to(dtype), weight, eps, offset, None, scale, rounded, cast, out, divide)


def replacement(x, dtype, weight, eps, offset, scale, rounded, cast, out, divide):
    return rms_norm(x, weight, eps, offset, dtype, scale, rounded, cast, out, divide)


def when(x, dtype, weight, eps, offset, scale, rounded, cast, out, divide):
    return x.is_floating_point() and dtype.is_floating_point


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        x="... D",
        dtype=Dtype(torch.float32),
        weight="D?",
        eps=Scalar(1e-6),
        offset=Scalar(0.0),
        scale=Dtype(optional=True),
        rounded=Dtype(optional=True),
        cast=Dtype(optional=True),
        out=Dtype(optional=True),
        divide=Switch(),
    ),
    when=when,
)
