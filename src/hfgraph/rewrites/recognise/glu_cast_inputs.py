"""Gate and up are cast to one dtype before everything else."""

import torch

from hfgraph.graph.inputs import Dtype, Inputs, Scalar
from hfgraph.graph.rule import Rule
from hfgraph.kernels.glu import CHOICE, glu


def pattern(gate, up, dtype, activation, alpha, gate_max, act_max, up_min, up_max, up_offset, out):
    return glu(gate.to(dtype), up.to(dtype), activation, alpha, gate_max, act_max, up_min, up_max, up_offset, None, out)


def replacement(gate, up, dtype, activation, alpha, gate_max, act_max, up_min, up_max, up_offset, out):
    return glu(gate, up, activation, alpha, gate_max, act_max, up_min, up_max, up_offset, dtype, out)


def when(gate, up, dtype, activation, alpha, gate_max, act_max, up_min, up_max, up_offset, out):
    return gate.is_floating_point() and up.is_floating_point() and dtype.is_floating_point


RULE = Rule(
    pattern,
    replacement,
    inputs=Inputs(
        gate="... D",
        up="... D",
        dtype=Dtype(torch.float32),
        activation=CHOICE,
        alpha=Scalar(1.7),
        gate_max=Scalar(1.2, optional=True),
        act_max=Scalar(0.6, optional=True),
        up_min=Scalar(-0.9, optional=True),
        up_max=Scalar(1.1, optional=True),
        up_offset=Scalar(1.0),
        out=Dtype(optional=True),
    ),
    when=when,
)
