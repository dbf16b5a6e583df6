"""The residual sum and its norm, both outputs."""

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.graph.values import same_shape
from hfgraph.kernels.add_layer_norm import add_layer_norm
from hfgraph.kernels.layer_norm import layer_norm


def pattern(x, residual, weight, bias, eps, offset, compute, rounded, cast, out, spelled, divide):
    total = x + residual
    return layer_norm(total, weight, bias, eps, offset, compute, rounded, cast, out, spelled, divide), total


def replacement(x, residual, weight, bias, eps, offset, compute, rounded, cast, out, spelled, divide):
    return add_layer_norm(x, residual, weight, bias, eps, 1.0, offset, compute, rounded, cast, out, spelled, divide)


def when(x, residual, weight, bias, eps, offset, compute, rounded, cast, out, spelled, divide):
    return same_shape(x, residual)


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        x="... D",
        residual="... D",
        weight="D?",
        bias="D?",
        eps=Scalar(1e-5),
        offset=Scalar(0.0),
        compute=Dtype(optional=True),
        rounded=Dtype(optional=True),
        cast=Dtype(optional=True),
        out=Dtype(optional=True),
        spelled=Switch(),
        divide=Switch(),
    ),
    when=when,
)
