"""A bias is added to the weighted values."""

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.graph.values import same_size
from hfgraph.kernels.layer_norm import layer_norm


def pattern(x, weight, bias, eps, offset, compute, rounded, cast, divide):
    return layer_norm(x, weight, None, eps, offset, compute, rounded, cast, spelled=1, divide=divide) + bias


def replacement(x, weight, bias, eps, offset, compute, rounded, cast, divide):
    return layer_norm(x, weight, bias, eps, offset, compute, rounded, cast, spelled=1, divide=divide)


def when(x, weight, bias, eps, offset, compute, rounded, cast, divide):
    """A vector over the normalised dim: anything larger is an activation."""
    return bias.ndim == 1 and same_size(bias.shape[0], x.shape[-1]) and bias.is_floating_point()


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        x="... D",
        weight="D",
        bias="D",
        eps=Scalar(1e-5),
        offset=Scalar(0.0),
        compute=Dtype(optional=True),
        rounded=Dtype(optional=True),
        cast=Dtype(optional=True),
        divide=Switch(),
    ),
    when=when,
)
