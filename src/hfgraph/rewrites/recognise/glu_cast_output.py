"""What was computed in another dtype is cast back to that of the gate. Any other cast belongs to what follows, a norm for instance."""

import torch

from hfgraph.graph.inputs import Dtype, Inputs, Scalar
from hfgraph.graph.rule import Rule
from hfgraph.kernels.glu import CHOICE, glu


def pattern(gate, up, dtype, activation, alpha, gate_max, act_max, up_min, up_max, up_offset, compute):
    return glu(gate, up, activation, alpha, gate_max, act_max, up_min, up_max, up_offset, compute).to(dtype)


def replacement(gate, up, dtype, activation, alpha, gate_max, act_max, up_min, up_max, up_offset, compute):
    return glu(gate, up, activation, alpha, gate_max, act_max, up_min, up_max, up_offset, compute, dtype)


def when(gate, up, dtype, activation, alpha, gate_max, act_max, up_min, up_max, up_offset, compute):
    return dtype == gate.dtype


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        gate="... D",
        up="... D",
        dtype=Dtype(torch.bfloat16),
        activation=CHOICE,
        alpha=Scalar(1.7),
        gate_max=Scalar(1.2, optional=True),
        act_max=Scalar(0.6, optional=True),
        up_min=Scalar(-0.9, optional=True),
        up_max=Scalar(1.1, optional=True),
        up_offset=Scalar(1.0),
        compute=Dtype(torch.float32),
    ),
    when=when,
)
