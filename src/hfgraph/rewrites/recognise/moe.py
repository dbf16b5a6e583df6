"""Mixtures of experts: two products with the matrices of the experts that each token chose, and the weighted sum. The router stays as it is."""

from __future__ import annotations

import torch
from torch.fx import Node

from hfgraph.graph.recogniser import Found, Recogniser, Refusal, View
from hfgraph.graph.values import val
from hfgraph.kernels.moe import moe
from hfgraph.rewrites.experts.dense import read_dense
from hfgraph.rewrites.experts.examples import EXAMPLES
from hfgraph.rewrites.experts.products import GROUPED, is_grouped
from hfgraph.rewrites.experts.reading import Unlike, user_of
from hfgraph.rewrites.experts.routed import read_routed

aten = torch.ops.aten


def recognise(node: Node, view: View) -> Found | Refusal | None:
    try:
        if is_grouped(node):
            return read_routed(node, view)
        end = user_of(node, aten.squeeze.dim)
        return read_routed(end, view) if end is not None and val(node).ndim == 3 else read_dense(node, view)
    except Unlike as e:
        return Refusal(e.reason, e.at, (node,))


RULE = Recogniser(
    anchors=GROUPED | {aten.bmm.default},
    recognise=recognise,
    op=moe,
    examples=EXAMPLES,
)
