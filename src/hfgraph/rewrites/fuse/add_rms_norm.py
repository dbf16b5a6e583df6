"""The residual sum and its norm, both outputs."""

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.graph.values import same_shape
from hfgraph.kernels.add_rms_norm import add_rms_norm
from hfgraph.kernels.rms_norm import rms_norm


def pattern(x, residual, weight, eps, offset, compute, scale, rounded, cast, out, divide):
    total = x + residual
    return rms_norm(total, weight, eps, offset, compute, scale, rounded, cast, out, divide), total


def replacement(x, residual, weight, eps, offset, compute, scale, rounded, cast, out, divide):
    return add_rms_norm(x, residual, weight, eps, 1.0, offset, compute, scale, rounded, cast, out, divide)


def when(x, residual, weight, eps, offset, compute, scale, rounded, cast, out, divide):
    return same_shape(x, residual)


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        x="... D",
        residual="... D",
        weight="D?",
        eps=Scalar(1e-6),
        offset=Scalar(0.0),
        compute=Dtype(optional=True),
        scale=Dtype(optional=True),
        rounded=Dtype(optional=True),
        cast=Dtype(optional=True),
        out=Dtype(optional=True),
        divide=Switch(),
    ),
    when=when,
)
