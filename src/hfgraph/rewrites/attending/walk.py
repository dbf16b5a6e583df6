"""What the walk from a softmax down to the product of queries and keys has found so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch.fx import Node

from hfgraph.rewrites.attending.factors import Parts


@dataclass
class Scores:
    """What happens between the product and the softmax.

    Attributes:
        nodes: the steps; the product is the last.
        scale: factor on the product.
        softcap: see `attention`.
        parts: masks and biases.
        sinks: the tensor of one more score for each query, with dims as the scores have.
        casts: what the scores are cast to on the way that is left to the softmax, the last cast first.
        lowered: a mask is added on the way, and no bound lifts what that gives.
        floor: the bound that lifts masked scores to one number.
        shifted: something is added to all scores of a query.
    """

    nodes: list[Node] = field(default_factory=list)
    scale: float = 1.0
    softcap: float = 0.0
    parts: Parts = field(default_factory=Parts)
    sinks: Node | None = None
    casts: list[torch.dtype] = field(default_factory=list)
    lowered: bool = False
    floor: float = -math.inf
    shifted: bool = False

    @property
    def floored(self) -> bool:
        return self.floor > -math.inf

    @property
    def product(self) -> Node:
        return self.nodes[-1]


class Stuck(Exception):
    """A step that is not understood."""

    def __init__(self, reason: str, at: Node) -> None:
        super().__init__(reason)
        self.at = at
