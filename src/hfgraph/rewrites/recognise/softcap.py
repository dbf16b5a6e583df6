"""Logits are divided by a cap, go through tanh, and are multiplied by the cap again."""

import torch

from hfgraph.graph.inputs import Inputs, Scalar
from hfgraph.graph.rule import Rule
from hfgraph.graph.sources import FromWeights
from hfgraph.kernels.softcap import softcap


def pattern(x, cap):
    return torch.tanh(x / cap) * cap


def replacement(x, cap):
    return softcap(x, cap)


def when(x, cap):
    return x.is_floating_point()


RULE = Rule(pattern, replacement, inputs=Inputs(x="... D", cap=Scalar(3.0)), when=when, where=FromWeights("x"))
