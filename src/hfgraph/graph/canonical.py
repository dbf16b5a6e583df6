"""The canonical graph: plain pre-dispatch ATen, one spelling, no no-ops, mutation only where it can be seen."""

from __future__ import annotations

from torch.fx import GraphModule

from hfgraph.graph.functional import functionalise
from hfgraph.graph.spelling import drop_copies, respell


def tidy(gm: GraphModule) -> int:
    """Bring a captured graph into canonical form, in place. Returns the number of nodes changed or removed.

    Equal subexpressions are left apart: a pattern's inner value may then be recognised in each of its copies.
    `hfgraph.graph.cse.merge_equal` merges what is left once everything is recognised.
    """
    changed = respell(gm) + functionalise(gm) + drop_copies(gm)
    gm.graph.eliminate_dead_code()
    return changed
