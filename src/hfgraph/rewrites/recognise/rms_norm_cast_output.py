"""The weighted result is cast."""

import torch

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.kernels.rms_norm import rms_norm


def pattern(x, weight, eps, offset, compute, scale, rounded, cast, dtype, divide):
    return rms_norm(x, weight, eps, offset, compute, scale, rounded, cast, divide=divide).to(dtype)


def replacement(x, weight, eps, offset, compute, scale, rounded, cast, dtype, divide):
    return rms_norm(x, weight, eps, offset, compute, scale, rounded, cast, out_dtype=dtype, divide=divide)


def when(x, weight, eps, offset, compute, scale, rounded, cast, dtype, divide):
    return dtype.is_floating_point


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
        cast=Dtype(optional=True),
        dtype=Dtype(torch.bfloat16),
        divide=Switch(),
    ),
    when=when,
)
