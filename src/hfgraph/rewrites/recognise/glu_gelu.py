"""The gate goes through GELU, by the error function."""

import torch.nn.functional as F

from hfgraph.graph.inputs import Inputs
from hfgraph.graph.rule import Rule
from hfgraph.graph.sources import FromOneProjection
from hfgraph.graph.values import same_shape
from hfgraph.kernels.glu import glu


def pattern(gate, up):
    return F.gelu(gate) * up


def replacement(gate, up):
    return glu(gate, up, "gelu")


def when(gate, up):
    return same_shape(gate, up) and gate.is_floating_point()


RULE = Rule(pattern, replacement, inputs=Inputs(gate="... D", up="... D"), when=when, where=FromOneProjection("gate", "up"))
