"""Linears of one input: they could be one matmul, if their weights were one matrix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from hfgraph.graph.alias import Aliases
from hfgraph.graph.cse import ValueNumbers
from hfgraph.graph.memory import MEMORY, Memory, obstacle, ordered
from hfgraph.graph.values import arguments, val

aten = torch.ops.aten
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
# A router or gate of a few rows costs nothing, and would spoil the alignment of the others.
_FEW = 8
# Inductor takes parameters for aligned, and so must each part of a block of them be.
_ALIGNMENT = 16


@dataclass(frozen=True)
class Siblings:
    """Linears of one input value.

    Attributes:
        linears: in the order in which their weights lie, or are to lie, in memory.
        reason: what keeps them apart; empty where nothing does.
    """

    linears: tuple[Node, ...]
    reason: str = ""

    @property
    def first(self) -> Node:
        return min(self.linears)

    @property
    def weights(self) -> tuple[Node, ...]:
        return tuple(weight(n) for n in self.linears)

    @property
    def biases(self) -> tuple[Node, ...]:
        return tuple(b for n in self.linears if (b := arguments(n)["bias"]) is not None)

    @property
    def parameters(self) -> tuple[Node, ...]:
        return self.weights + self.biases


def weight(linear: Node) -> Node:
    """The weight of a linear."""
    return arguments(linear)["weight"]


def siblings(gm: GraphModule) -> list[Siblings]:
    """The groups of a graph that can be merged; then, with the reason, families none of which can.

    A parameter in groups of different members could be stacked with one of them only: those are left alone.
    """
    aliases = Aliases(gm.graph)
    found: list[Siblings] = []
    apart: list[Siblings] = []
    for family in _families(gm, aliases):
        groups, reason = _split(family, aliases)
        found += groups
        if not groups:
            apart.append(Siblings(tuple(family), reason))
    partners: dict[Node, set[tuple[Node, ...]]] = defaultdict(set)
    for group in found:
        for p in group.parameters:
            partners[p].add(group.parameters)
    torn = [g for g in found if any(len(partners[p]) > 1 for p in g.parameters)]
    apart += [Siblings(g.linears, "a parameter has other siblings elsewhere") for g in torn]
    return [g for g in found if g not in torn] + apart


def _families(gm: GraphModule, aliases: Aliases) -> list[list[Node]]:
    """Linears that read one value: the same number, in one region, with no write to it between them."""
    numbers = ValueNumbers(gm.graph, aliases)
    families: dict[Any, dict[Node, Node]] = defaultdict(dict)
    for node in gm.graph.nodes:
        if node.target is aten.linear.default:
            x = arguments(node)["input"]
            written = sum(w < node for w in aliases.writes([x]))
            families[numbers.number(x), numbers.region(node), written].setdefault(weight(node), node)
    return [list(f.values()) for f in families.values() if len(f) > 1]


def _split(family: list[Node], aliases: Aliases) -> tuple[list[Siblings], str]:
    """Groups alike in dtype and in having a bias; and what stands against the others."""
    alike: dict[Any, list[Node]] = defaultdict(list)
    reasons = []
    for node in family:
        reason = _unfit(node, aliases)
        if reason is None:
            w = val(weight(node))
            alike[w.dtype, w.device, arguments(node)["bias"] is None].append(node)
        else:
            reasons.append(reason)
    groups = []
    for group in alike.values():
        group.sort(key=weight)  # by their places among the inputs, whichever is used first
        reason = _memory_in_the_way(group) if len(group) > 1 else "its siblings have another dtype, or a bias where it has none"
        if reason is None:
            order = ordered(_memories([weight(n) for n in group]))
            groups.append(Siblings(tuple(group[i] for i in order)))
        else:
            reasons.append(reason)
    return groups, reasons[0] if reasons else ""


def _unfit(linear: Node, aliases: Aliases) -> str | None:
    """Why a linear cannot be merged with any other."""
    given = arguments(linear)
    for name in ("weight", "bias"):
        node = given[name]
        if node is None:
            continue
        if not isinstance(val(node), Tensor) or node.op != "placeholder":
            return f"its {name} is computed"
        if MEMORY not in node.meta:
            return f"its {name} is no plain parameter"
        if aliases.is_written(node):
            return f"the graph writes its {name}"
        if node.meta[MEMORY].trained and torch.is_grad_enabled():
            return f"its {name} may be trained"
    w = val(given["weight"])
    if w.ndim != 2 or w.dtype not in _FLOATS or not all(isinstance(s, int) for s in w.shape):
        return f"its weight is {w.ndim}-dimensional {w.dtype}"
    if w.shape[0] <= _FEW or w.shape[0] * w.element_size() % _ALIGNMENT:
        return f"its {w.shape[0]} rows are few, or not aligned"
    return None


def _memory_in_the_way(group: Sequence[Node]) -> str | None:
    weights, biases = [weight(n) for n in group], [b for n in group if (b := arguments(n)["bias"]) is not None]
    if len(set(biases)) < len(biases):
        return "a bias serves several of them"
    order = ordered(_memories(weights))
    for nodes in (weights, biases):
        parts = _memories(nodes)
        reason = obstacle([parts[i] for i in order]) if parts else None
        if reason is not None:
            return reason
    return None


def _memories(nodes: Sequence[Node]) -> list[Memory]:
    return [n.meta[MEMORY] for n in nodes]
