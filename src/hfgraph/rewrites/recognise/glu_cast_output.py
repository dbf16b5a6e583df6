"""The product is cast."""

import torch

from hfgraph.graph.inputs import Dtype, Inputs, Scalar
from hfgraph.graph.rule import Rule
from hfgraph.kernels.glu import CHOICE, glu


def pattern(gate, up, dtype, activation, alpha, gate_max, act_max, up_min, up_max, up_offset, compute):
    return glu(gate, up, activation, alpha, gate_max=gate_max, act_max=act_max, up_min=up_min, up_max=up_max, up_offset=up_offset, compute_dtype=compute).to(
        dtype
    )


def replacement(gate, up, dtype, activation, alpha, gate_max, act_max, up_min, up_max, up_offset, compute):
    return glu(
        gate,
        up,
        activation,
        alpha,
        gate_max=gate_max,
        act_max=act_max,
        up_min=up_min,
        up_max=up_max,
        up_offset=up_offset,
        compute_dtype=compute,
        out_dtype=dtype,
    )


def when(gate, up, dtype, activation, alpha, gate_max, act_max, up_min, up_max, up_offset, compute):
    return dtype.is_floating_point


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
        compute=Dtype(optional=True),
    ),
    when=when,
)
