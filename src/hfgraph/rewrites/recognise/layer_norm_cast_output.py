"""The weighted result is cast."""

import torch

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.kernels.layer_norm import layer_norm


def pattern(x, weight, bias, dtype, eps, offset, compute, rounded, cast, spelled, divide):
    return layer_norm(x, weight, bias, eps, offset, compute, rounded, cast, spelled=spelled, divide=divide).to(dtype)


def replacement(x, weight, bias, dtype, eps, offset, compute, rounded, cast, spelled, divide):
    return layer_norm(x, weight, bias, eps, offset, compute, rounded, cast, dtype, spelled, divide)


def when(x, weight, bias, dtype, eps, offset, compute, rounded, cast, spelled, divide):
    return dtype.is_floating_point


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        x="... D",
        weight="D",
        bias="D?",
        dtype=Dtype(torch.bfloat16),
        eps=Scalar(1e-5),
        offset=Scalar(0.0),
        compute=Dtype(optional=True),
        rounded=Dtype(optional=True),
        cast=Dtype(optional=True),
        spelled=Switch(),
        divide=Switch(),
    ),
    when=when,
)
