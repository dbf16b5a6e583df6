"""The weight is stored as a distance from a constant, usually one."""

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.kernels.layer_norm import layer_norm


def pattern(x, weight, bias, offset, eps, compute, rounded, out, spelled, divide):
    return layer_norm(x, weight + offset, bias, eps, compute_dtype=compute, round_dtype=rounded, out_dtype=out, spelled=spelled, divide=divide)


def replacement(x, weight, bias, offset, eps, compute, rounded, out, spelled, divide):
    return layer_norm(x, weight, bias, eps, offset, compute, rounded, None, out, spelled, divide)


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        x="... D",
        weight="D",
        bias="D?",
        offset=Scalar(1.0),
        eps=Scalar(1e-5),
        compute=Dtype(optional=True),
        rounded=Dtype(optional=True),
        out=Dtype(optional=True),
        spelled=Switch(),
        divide=Switch(),
    ),
)
