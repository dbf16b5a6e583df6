"""Queries and keys are normalised per head and then rotated."""

from hfgraph.graph.inputs import Dtype, Inputs, Scalar, Switch
from hfgraph.graph.rule import Rule
from hfgraph.kernels.qk_norm_rope import qk_norm_rope
from hfgraph.kernels.rms_norm import rms_norm
from hfgraph.kernels.rope import rope


def pattern(q, k, qw, kw, cos, sin, eps, offset, calc, mid, held, normed, divide, half, q_tail, k_tail, pairs, left, back):
    norm = (eps, offset, calc, None, mid, held, normed, divide)
    return rope(rms_norm(q, qw, *norm), rms_norm(k, kw, *norm), cos, sin, half, q_tail, k_tail, pairs, left, back)


def replacement(q, k, qw, kw, cos, sin, eps, offset, calc, mid, held, normed, divide, half, q_tail, k_tail, pairs, left, back):
    return qk_norm_rope(q, k, qw, kw, cos, sin, eps, offset, calc, mid, held, normed, divide, half, q_tail, k_tail, pairs, left, back)


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        q="... 6D",
        k="... 6D",
        qw="6D",
        kw="6D",
        cos="... 2D",
        sin="... 2D",
        eps=Scalar(1e-6),
        offset=Scalar(0.0),
        calc=Dtype(optional=True),
        mid=Dtype(optional=True),
        held=Dtype(optional=True),
        normed=Dtype(optional=True),
        divide=Switch(),
        half=Switch(),
        q_tail=Switch(),
        k_tail=Switch(),
        pairs=Switch(),
        left=Switch(),
        back=Switch(),
    ),
)
