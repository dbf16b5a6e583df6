"""What is added to the residual is multiplied by a number first, and stands first: ``x * 0.22 + residual``."""

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.kernels.add_rms_norm import add_rms_norm


def pattern(x, residual, multiplier, weight, eps, offset, compute, scale, rounded, cast, out, divide):
    return add_rms_norm(x * multiplier, residual, weight, eps, 1.0, offset, compute, scale, rounded, cast, out, divide)


def replacement(x, residual, multiplier, weight, eps, offset, compute, scale, rounded, cast, out, divide):
    return add_rms_norm(x, residual, weight, eps, multiplier, offset, compute, scale, rounded, cast, out, divide)


def when(x, residual, multiplier, weight, eps, offset, compute, scale, rounded, cast, out, divide):
    return x.is_floating_point()


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        x="... D",
        residual="... D",
        multiplier=Scalar(0.22),
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
