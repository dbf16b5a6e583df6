"""A weight multiplies the normalised values."""

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.graph.values import same_size
from hfgraph.kernels.rms_norm import rms_norm


def pattern(x, weight, eps, compute, scale, rounded, divide):
    return rms_norm(x, None, eps, compute_dtype=compute, scale_dtype=scale, round_dtype=rounded, divide=divide) * weight


def replacement(x, weight, eps, compute, scale, rounded, divide):
    return rms_norm(x, weight, eps, compute_dtype=compute, scale_dtype=scale, round_dtype=rounded, divide=divide)


def when(x, weight, eps, compute, scale, rounded, divide):
    """A vector over the normalised dim: anything larger is an activation (a gate), not a weight."""
    return weight.ndim == 1 and same_size(weight.shape[0], x.shape[-1]) and weight.is_floating_point()


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        x="... D",
        weight="D",
        eps=Scalar(1e-6),
        compute=Dtype(optional=True),
        scale=Dtype(optional=True),
        rounded=Dtype(optional=True),
        divide=Switch(),
    ),
    when=when,
)
