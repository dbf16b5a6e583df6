"""The normalised values are cast before the weight is applied."""

import torch

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.kernels.rms_norm import rms_norm


def pattern(x, eps, compute, scale, dtype, divide):
    return rms_norm(x, None, eps, compute_dtype=compute, scale_dtype=scale, divide=divide).to(dtype)


def replacement(x, eps, compute, scale, dtype, divide):
    return rms_norm(x, None, eps, compute_dtype=compute, scale_dtype=scale, round_dtype=dtype, divide=divide)


def when(x, eps, compute, scale, dtype, divide):
    return dtype.is_floating_point


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        x="... D",
        eps=Scalar(1e-6),
        compute=Dtype(optional=True),
        scale=Dtype(optional=True),
        dtype=Dtype(torch.bfloat16),
        divide=Switch(),
    ),
    when=when,
)
