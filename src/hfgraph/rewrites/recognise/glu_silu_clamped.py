"""The activated gate is clamped from above before it multiplies."""

import torch.nn.functional as F

from hfgraph.graph.inputs import Inputs, Scalar
from hfgraph.graph.rule import Rule
from hfgraph.graph.sources import FromOneProjection
from hfgraph.graph.values import same_shape
from hfgraph.kernels.glu import glu


def pattern(gate, up, high):
    return F.silu(gate).clamp(max=high) * up


def replacement(gate, up, high):
    return glu(gate, up, "silu", act_max=high)


def when(gate, up, high):
    return same_shape(gate, up) and gate.is_floating_point()


RULE = Rule(pattern, replacement, inputs=Inputs(gate="... D", up="... D", high=Scalar(0.6)), when=when, where=FromOneProjection("gate", "up"), everyday=True)
