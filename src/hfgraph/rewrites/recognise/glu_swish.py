"""The gate times the sigmoid of itself, scaled: three operations, each rounded, where SiLU rounds once."""

import torch

from hfgraph.graph.inputs import Inputs, Scalar
from hfgraph.graph.rule import Rule
from hfgraph.graph.sources import FromOneProjection
from hfgraph.graph.values import same_shape
from hfgraph.kernels.glu import glu


def pattern(gate, up, alpha):
    return gate * torch.sigmoid(gate * alpha) * up


def replacement(gate, up, alpha):
    return glu(gate, up, "swish", alpha)


def when(gate, up, alpha):
    return same_shape(gate, up) and gate.is_floating_point()


RULE = Rule(pattern, replacement, inputs=Inputs(gate="... D", up="... D", alpha=Scalar(1.7)), when=when, where=FromOneProjection("gate", "up"), everyday=True)
