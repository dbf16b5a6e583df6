"""Scores so low that they mask, and what may hold such."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from hfgraph.graph.alias import varies
from hfgraph.graph.memory import MEMORY
from hfgraph.graph.sources import is_projection, trail
from hfgraph.graph.values import val
from hfgraph.rewrites.attending.numbers import constant

aten = torch.ops.aten
# Scores from here on down are masks; what is less negative may still matter to a sum.
_MASKED = {torch.float16: -6.0e4}
_MASKED_BELOW = -1.0e30

# What these give is finite.
_FINITE = frozenset({aten.softmax.int, aten.sigmoid.default, aten.tanh.default})


def may_mask(bias: Node) -> bool:
    """A bias may be as low as a mask: it comes from outside, it is written to, or a number of that size went into it."""
    if varies(bias) or trail(bias)[-1].op != "call_function":
        return True
    low = -_MASKED.get(val(bias).dtype, _MASKED_BELOW)
    stack, seen = [bias], {bias}
    while stack:
        node = stack.pop()
        if any(isinstance(a, int | float) and abs(a) >= low for a in (*node.args, constant(node))):
            return True
        inputs = [] if is_projection(node) or node.target is aten.softmax.int else [n for n in node.all_input_nodes if n not in seen]
        seen.update(inputs)
        stack += inputs
    return False


def may_be_infinite(bias: Node) -> bool:
    """Nothing in the graph says that it is finite: a tensor of the caller's goes into it, through no product, or an infinite number."""
    stack, seen = [bias], {bias}
    while stack:
        node = stack.pop()
        given = node.op != "call_function" and MEMORY not in node.meta and isinstance(val(node), Tensor) and val(node).is_floating_point()
        if given or varies(node) or any(isinstance(a, int | float) and math.isinf(a) for a in (*node.args, constant(node))):
            return True
        inputs = [] if is_projection(node) or node.target in _FINITE else [n for n in node.all_input_nodes if n not in seen]
        seen.update(inputs)
        stack += inputs
    return False


def loses(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether a cast of floats rounds them, or makes large ones infinite."""
    return torch.finfo(other).eps > torch.finfo(dtype).eps or torch.finfo(other).max < torch.finfo(dtype).max


def is_mask(value: Any, dtype: torch.dtype) -> bool:
    """A score so low that it masks."""
    return isinstance(value, int | float) and value <= _MASKED.get(dtype, _MASKED_BELOW)
