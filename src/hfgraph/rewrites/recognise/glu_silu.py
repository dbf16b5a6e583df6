"""The core of most gated MLPs: a gate through SiLU, times what it gates."""

import torch.nn.functional as F

from hfgraph.graph.inputs import Inputs
from hfgraph.graph.rule import Rule
from hfgraph.graph.sources import FromOneProjection
from hfgraph.graph.values import same_shape
from hfgraph.kernels.glu import glu


def pattern(gate, up):
    return F.silu(gate) * up


def replacement(gate, up):
    return glu(gate, up, "silu")


def when(gate, up):
    return same_shape(gate, up) and gate.is_floating_point()


RULE = Rule(pattern, replacement, inputs=Inputs(gate="... D", up="... D"), when=when, where=FromOneProjection("gate", "up"))
