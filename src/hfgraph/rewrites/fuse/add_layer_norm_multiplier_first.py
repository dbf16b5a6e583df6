"""What is added to the residual is multiplied by a number first, and stands first: ``x * 0.22 + residual``."""

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.kernels.add_layer_norm import add_layer_norm


def pattern(x, residual, multiplier, weight, bias, eps, offset, compute, rounded, cast, out, spelled, divide):
    return add_layer_norm(x * multiplier, residual, weight, bias, eps, 1.0, offset, compute, rounded, cast, out, spelled, divide)


def replacement(x, residual, multiplier, weight, bias, eps, offset, compute, rounded, cast, out, spelled, divide):
    return add_layer_norm(x, residual, weight, bias, eps, multiplier, offset, compute, rounded, cast, out, spelled, divide)


def when(x, residual, multiplier, weight, bias, eps, offset, compute, rounded, cast, out, spelled, divide):
    return x.is_floating_point()


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        x="... D",
        residual="... D",
        multiplier=Scalar(0.22),
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
