"""The input is cast before everything else: absorbed as the dtype of computation."""

import torch

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.kernels.layer_norm import layer_norm


def pattern(x, dtype, weight, bias, eps, offset, rounded, cast, out, spelled, divide):
    return layer_norm(x.to(dtype), weight, bias, eps, offset, None, rounded, cast, out, spelled, divide)


def replacement(x, dtype, weight, bias, eps, offset, rounded, cast, out, spelled, divide):
    return layer_norm(x, weight, bias, eps, offset, dtype, rounded, cast, out, spelled, divide)


def when(x, dtype, weight, bias, eps, offset, rounded, cast, out, spelled, divide):
    return x.is_floating_point() and dtype.is_floating_point


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        x="... D",
        dtype=Dtype(torch.float32),
        weight="D?",
        bias="D?",
        eps=Scalar(1e-5),
        offset=Scalar(0.0),
        rounded=Dtype(optional=True),
        cast=Dtype(optional=True),
        out=Dtype(optional=True),
        spelled=Switch(),
        divide=Switch(),
    ),
    when=when,
)
