"""The gate is clamped from above."""

from hfgraph.graph.inputs import Dtype, Inputs, Scalar
from hfgraph.graph.rule import Rule
from hfgraph.kernels.glu import CHOICE, glu


def pattern(gate, up, high, activation, alpha, act_max, up_min, up_max, up_offset, out):
    return glu(gate.clamp(max=high), up, activation, alpha, act_max=act_max, up_min=up_min, up_max=up_max, up_offset=up_offset, out_dtype=out)


def replacement(gate, up, high, activation, alpha, act_max, up_min, up_max, up_offset, out):
    return glu(gate, up, activation, alpha, gate_max=high, act_max=act_max, up_min=up_min, up_max=up_max, up_offset=up_offset, out_dtype=out)


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        gate="... D",
        up="... D",
        high=Scalar(1.2),
        activation=CHOICE,
        alpha=Scalar(1.7),
        act_max=Scalar(0.6, optional=True),
        up_min=Scalar(-0.9, optional=True),
        up_max=Scalar(1.1, optional=True),
        up_offset=Scalar(1.0),
        out=Dtype(optional=True),
    ),
)
