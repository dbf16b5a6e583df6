"""Puts a plain function's operators into a graph, traced and cleaned as models are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from hfgraph.graph.canonical import tidy
from hfgraph.graph.values import val


def inline(function: Callable[..., Tensor], args: Sequence[Node], before: Node) -> Node:
    """Compute ``function(*args)``, a function of tensors, before a node. The new nodes take over what is known of that one's place."""
    fakes = [val(a) for a in args]
    with fakes[0].fake_mode, torch.no_grad():
        traced = make_fx(function, pre_dispatch=True)(*fakes)
    tidy(traced)
    given = iter(args)
    made: dict[Node, Any] = {}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            made[node] = next(given)
        elif node.op == "output":
            return made[node.args[0]]
        else:
            with before.graph.inserting_before(before):
                new = before.graph.node_copy(node, lambda n: made[n])
            new.meta = {k: v for k, v in before.meta.items() if k != "val" and not k.startswith("hfgraph_")}
            new.meta["val"] = val(node)
            made[node] = new
    raise AssertionError("a traced function has an output")
