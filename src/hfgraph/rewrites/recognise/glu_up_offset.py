"""A number is added to what is gated, after it was clamped."""

from hfgraph.graph.inputs import Dtype, Inputs, Scalar
from hfgraph.graph.rule import Rule
from hfgraph.kernels.glu import CHOICE, glu


def pattern(gate, up, offset, activation, alpha, gate_max, act_max, out):
    return glu(gate, up + offset, activation, alpha, gate_max=gate_max, act_max=act_max, out_dtype=out)


def replacement(gate, up, offset, activation, alpha, gate_max, act_max, out):
    return glu(gate, up, activation, alpha, gate_max=gate_max, act_max=act_max, up_offset=offset, out_dtype=out)


def when(gate, up, offset, activation, alpha, gate_max, act_max, out):
    return offset != 0


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        gate="... D",
        up="... D",
        offset=Scalar(1.0),
        activation=CHOICE,
        alpha=Scalar(1.7),
        gate_max=Scalar(1.2, optional=True),
        act_max=Scalar(0.6, optional=True),
        out=Dtype(optional=True),
    ),
    when=when,
)
