"""Copies that only matter to whoever writes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from hfgraph.graph.alias import Aliases, stand_for
from hfgraph.graph.values import regions, same_layout, val

aten = torch.ops.aten


def drop_copies(gm: GraphModule) -> int:
    """Remove copies that only matter to whoever writes: `x * 1`, `x / 1`, a clone in the same layout.

    A copy stays where either storage is written, or where it becomes an output that would then alias something.
    `x + 0` is no copy: it turns -0.0 into 0.0.
    """
    if not any(_is_copy(n) for n in gm.graph.nodes):
        return 0
    aliases, modes = Aliases(gm.graph), regions(gm.graph)
    leaving = {m for o in gm.graph.output_node().all_input_nodes for m in aliases.members(o)}
    dropped = 0
    for node in list(gm.graph.nodes):
        if not _is_copy(node) or node in leaving or modes[node] != modes[node.args[0]]:
            continue
        if aliases.is_written(node) or aliases.is_written(node.args[0]):
            continue
        stand_for(node.args[0], node)
        gm.graph.erase_node(node)
        dropped += 1
    return dropped


def _is_copy(node: Node) -> bool:
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node) or not isinstance(val(node), Tensor):
        return False
    x = node.args[0]
    if not isinstance(val(x), Tensor) or not same_layout(val(x), val(node)):
        return False
    by_one = node.target in (aten.mul.Tensor, aten.div.Tensor) and isinstance(node.args[1], int | float) and node.args[1] == 1
    return by_one or node.target is aten.clone.default
