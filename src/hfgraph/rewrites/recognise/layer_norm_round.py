"""The normalised values are cast before the weight is applied."""

import torch

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.kernels.layer_norm import layer_norm


def pattern(x, eps, compute, dtype, spelled, divide):
    return layer_norm(x, None, None, eps, compute_dtype=compute, spelled=spelled, divide=divide).to(dtype)


def replacement(x, eps, compute, dtype, spelled, divide):
    return layer_norm(x, None, None, eps, compute_dtype=compute, round_dtype=dtype, spelled=spelled, divide=divide)


def when(x, eps, compute, dtype, spelled, divide):
    return dtype.is_floating_point


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        x="... D",
        eps=Scalar(1e-5),
        compute=Dtype(optional=True),
        dtype=Dtype(torch.bfloat16),
        spelled=Switch(),
        divide=Switch(),
    ),
    when=when,
)
