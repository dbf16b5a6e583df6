"""In-place operators become out-of-place where nobody can tell; the rest are mutations that the matcher respects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from hfgraph.graph.alias import FRESH, Aliases
from hfgraph.graph.values import arguments, is_random, val, written, written_nodes

aten = torch.ops.aten
_SCATTER = {aten.slice.Tensor: aten.slice_scatter.default, aten.select.int: aten.select_scatter.default}


def functionalise(gm: GraphModule) -> int:
    """Rewrite in-place operators on storage that is born and dies in the graph. Returns how many were rewritten.

    `x.op_(y)` becomes `x' = x.op(y)`, later readers of x read x'. That is right unless an *other* alias of x is read
    later. Writing into a slice of a fresh tensor (`k[..., :n].copy_(v)`) becomes `slice_scatter`.
    """
    nodes = list(gm.graph.nodes)
    if not any(written_nodes(n) for n in nodes):
        return 0
    position = {n: i for i, n in enumerate(nodes)}
    aliases = Aliases(gm.graph)
    rewritten = 0
    for node in nodes:
        found = _candidate(node, aliases)
        if found is None:
            continue
        x, functional = found
        earlier = [m for m in aliases.members(x) if position[m] < position[node]]
        if _silent_after(node, [m for m in earlier if m is not x], position):
            new = _replace(gm, node, x, functional, position)
        elif _writes_into_slice(node, x, earlier, position):
            new = _scatter(gm, node, x, functional, position)
        else:
            continue
        aliases.inherit(new, x)
        rewritten += 1
    return rewritten


def _candidate(node: Node, aliases: Aliases) -> tuple[Node, OpOverload] | None:
    """The tensor written and the out-of-place twin, where a node writes one tensor that no caller can see."""
    if not isinstance(node.target, OpOverload) or written(node.target) != ("self",) or is_random(node.target):
        return None
    x, twin = arguments(node)["self"], _twin(node.target)
    return (x, twin) if isinstance(x, Node) and twin is not None and not aliases.is_input(x) else None


def _twin(target: OpOverload) -> OpOverload | None:
    """`aten.div_.Tensor` -> `aten.div.Tensor`; None where there is none, or where it returns a view."""
    name = target._schema.name.split("::")[1]
    packet = getattr(aten, name[:-1], None) if name.endswith("_") and not name.endswith("__") else None
    twin = getattr(packet, target._overloadname, None) if packet is not None else None
    if not isinstance(twin, OpOverload) or any(r.alias_info is not None for r in twin._schema.returns):
        return None
    return twin


def _silent_after(node: Node, others: Iterable[Node], position: dict[Node, int]) -> bool:
    """Nobody reads any of `others` after `node`."""
    here = position[node]
    return all(position.get(u, here) <= here for m in others for u in m.users)


def _replace(gm: GraphModule, node: Node, x: Node, twin: OpOverload, position: dict[Node, int]) -> Node:
    new = _out_of_place(gm, node, twin, position)
    node.replace_all_uses_with(new)
    here = position[node]
    x.replace_all_uses_with(new, delete_user_cb=lambda u: position.get(u, -1) > here)
    gm.graph.erase_node(node)
    return new


def _out_of_place(gm: GraphModule, node: Node, twin: OpOverload, position: dict[Node, int]) -> Node:
    """The twin's call, cast back to the dtype that the in-place operator kept."""
    kept: Tensor = val(arguments(node)["self"])
    with gm.graph.inserting_before(node):
        new = gm.graph.call_function(twin, node.args, node.kwargs)
        position[new] = position[node]
        if _result_dtype(new) != kept.dtype:
            new.meta = {**node.meta, FRESH: True}
            new = gm.graph.call_function(aten.to.dtype, (new, kept.dtype))
            position[new] = position[node]
    new.meta = {**node.meta, "val": kept, FRESH: True}
    return new


def _result_dtype(node: Node) -> torch.dtype:
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), val)
    fake = next(v for v in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor))
    mode: Any = getattr(fake, "fake_mode", None)
    with mode:
        return node.target(*args, **kwargs).dtype  # type: ignore[operator]


def _writes_into_slice(node: Node, x: Node, earlier: list[Node], position: dict[Node, int]) -> bool:
    """x is a slice of a fresh tensor, made for this write alone, and only that tensor is read later."""
    base = x.args[0] if x.target in _SCATTER else None
    if not isinstance(base, Node) or not _silent_after(node, [x, *(m for m in earlier if m is not base)], position):
        return False
    return not node.users


def _scatter(gm: GraphModule, node: Node, x: Node, twin: OpOverload, position: dict[Node, int]) -> Node:
    base = x.args[0]
    assert isinstance(base, Node)
    here = position[node]
    piece = _out_of_place(gm, node, twin, position)
    with gm.graph.inserting_before(node):
        whole = gm.graph.call_function(_SCATTER[x.target], (base, piece, *x.args[1:]), x.kwargs)
    position[whole] = here
    whole.meta = {**node.meta, "val": val(base), FRESH: True}
    base.replace_all_uses_with(whole, delete_user_cb=lambda u: position.get(u, -1) > here)
    gm.graph.erase_node(node)
    return whole
