"""The canonical graph: plain pre-dispatch ATen, one spelling, no no-ops, mutation only where it can be seen."""

from __future__ import annotations

from torch.fx import GraphModule

from hfgraph.graph.copies import drop_copies
from hfgraph.graph.functional import functionalise
from hfgraph.graph.spelling import respell
from hfgraph.graph.values import drop_dead


def tidy(gm: GraphModule) -> int:
    """Bring a captured graph into canonical form, in place. Returns the number of nodes changed or removed.

    Equal subexpressions are left apart: a pattern's inner value may then be recognised in each of its copies.
    `hfgraph.graph.cse.merge_equal` merges what is left once everything is recognised.
    """
    total = 0
    while changed := drop_dead(gm.graph) + respell(gm) + functionalise(gm) + drop_copies(gm):  # one may open the way for another
        total += changed
    return total
