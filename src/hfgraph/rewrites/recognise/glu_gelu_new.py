"""The gate goes through the tanh approximation of GELU, written out: each operation rounds."""

import math

import torch

from hfgraph.graph.inputs import Inputs
from hfgraph.graph.rule import Rule
from hfgraph.graph.sources import FromOneProjection
from hfgraph.graph.values import same_shape
from hfgraph.kernels.glu import glu


def pattern(gate, up):
    return 0.5 * gate * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (gate + 0.044715 * torch.pow(gate, 3.0)))) * up


def replacement(gate, up):
    return glu(gate, up, "gelu_new")


def when(gate, up):
    return same_shape(gate, up) and gate.is_floating_point()


RULE = Rule(pattern, replacement, inputs=Inputs(gate="... D", up="... D"), when=when, where=FromOneProjection("gate", "up"), everyday=True)
