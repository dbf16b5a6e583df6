"""The weight is stored as a distance from a constant, usually one."""

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.kernels.rms_norm import rms_norm


def pattern(x, weight, offset, eps, compute, scale, rounded, out, divide):
    return rms_norm(x, weight + offset, eps, compute_dtype=compute, scale_dtype=scale, round_dtype=rounded, out_dtype=out, divide=divide)


def replacement(x, weight, offset, eps, compute, scale, rounded, out, divide):
    return rms_norm(x, weight, eps, offset, compute_dtype=compute, scale_dtype=scale, round_dtype=rounded, out_dtype=out, divide=divide)


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        x="... D",
        weight="D",
        offset=Scalar(1.0),
        eps=Scalar(1e-6),
        compute=Dtype(optional=True),
        scale=Dtype(optional=True),
        rounded=Dtype(optional=True),
        out=Dtype(optional=True),
        divide=Switch(),
    ),
)
