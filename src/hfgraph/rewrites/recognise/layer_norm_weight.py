"""A weight multiplies the normalised values."""

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.graph.values import same_size
from hfgraph.kernels.layer_norm import layer_norm


def pattern(x, weight, eps, compute, rounded, divide):
    return layer_norm(x, None, None, eps, compute_dtype=compute, round_dtype=rounded, spelled=1, divide=divide) * weight


def replacement(x, weight, eps, compute, rounded, divide):
    return layer_norm(x, weight, None, eps, compute_dtype=compute, round_dtype=rounded, spelled=1, divide=divide)


def when(x, weight, eps, compute, rounded, divide):
    """A vector over the normalised dim: anything larger is an activation (a gate), not a weight."""
    return weight.ndim == 1 and same_size(weight.shape[0], x.shape[-1]) and weight.is_floating_point()


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        x="... D",
        weight="D",
        eps=Scalar(1e-5),
        compute=Dtype(optional=True),
        rounded=Dtype(optional=True),
        divide=Switch(),
    ),
    when=when,
)
