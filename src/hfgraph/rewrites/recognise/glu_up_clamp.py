"""What is gated is clamped."""

from hfgraph.graph.inputs import Dtype, Inputs, Scalar
from hfgraph.graph.rule import Rule
from hfgraph.kernels.glu import CHOICE, glu


def pattern(gate, up, low, high, activation, alpha, gate_max, act_max, up_offset, out):
    return glu(gate, up.clamp(low, high), activation, alpha, gate_max=gate_max, act_max=act_max, up_offset=up_offset, out_dtype=out)


def replacement(gate, up, low, high, activation, alpha, gate_max, act_max, up_offset, out):
    return glu(gate, up, activation, alpha, gate_max=gate_max, act_max=act_max, up_min=low, up_max=high, up_offset=up_offset, out_dtype=out)


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        gate="... D",
        up="... D",
        low=Scalar(-0.9),
        high=Scalar(1.1),
        activation=CHOICE,
        alpha=Scalar(1.7),
        gate_max=Scalar(1.2, optional=True),
        act_max=Scalar(0.6, optional=True),
        up_offset=Scalar(1.0),
        out=Dtype(optional=True),
    ),
)
