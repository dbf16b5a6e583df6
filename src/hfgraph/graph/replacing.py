"""What every replacement does, a rule's or a recogniser's: new nodes inherit what is known of the old ones, who then go."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from hfgraph.graph.cost import NOTHING, Work, work
from hfgraph.graph.match import Matcher
from hfgraph.graph.recogniser import Found, early_users
from hfgraph.graph.values import evaluated, same_places, val

# Meta keys of a rewritten node: the rules that made it, the node of the canonical graph whose value it computes, and all nodes
# of the canonical graph whose work it does.
RULES = "hfgraph_rules"
REPLACES = "hfgraph_replaces"
FROM = "hfgraph_from"
# What a recogniser says of a site, for the report.
NOTE = "hfgraph_note"


class Change(NamedTuple):
    """Nodes that came, results first, nodes that went, and the work those were."""

    new: list[Node]
    gone: list[Node]
    removed: Work


def inherited(rule: str, outputs: Sequence[Node], nodes: Iterable[Node]) -> dict[str, Any]:
    """Meta of what replaces `nodes`: the place of the node that knows its own best, the rules so far, the work taken over."""
    nodes = list(nodes)
    known = next((n for n in (*outputs, *nodes) if n.meta.get("nn_module_stack")), outputs[0])
    history = (*dict.fromkeys(r for n in nodes for r in n.meta.get(RULES, ())), rule)
    done = tuple(dict.fromkeys(name for n in nodes for name in n.meta.get(FROM, (n.name,))))
    return {**{k: v for k, v in known.meta.items() if k not in ("val", RULES, REPLACES, FROM, NOTE)}, RULES: history, FROM: done}


def stand_in(new: Node, old: Node) -> None:
    """Note the canonical node whose value `new` computes."""
    if REPLACES in old.meta or RULES not in old.meta:
        new.meta[REPLACES] = old.meta.get(REPLACES, old.name)


# What sabotage multiplies by: small enough to look plausible, large enough to matter.
FALSE = 1.03


def falsified(graph: Graph, node: Node, before: Node) -> Node:
    """A result that sabotage has made wrong."""
    with graph.inserting_before(before):
        wrong = graph.call_function(torch.ops.aten.mul.Tensor, (node, FALSE))
    wrong.meta = {**node.meta}
    node.meta = {k: v for k, v in node.meta.items() if k != REPLACES}
    return wrong


def hand_over(matcher: Matcher, old: Sequence[Node], new: Sequence[Node]) -> None:
    """Users of the old results read the new ones."""
    for n, o in zip(new, old, strict=True):
        o.replace_all_uses_with(n)
        matcher.aliases.inherit(n, o)


def erased(graph: Graph, matcher: Matcher, nodes: Iterable[Node]) -> tuple[list[Node], Work]:
    """Remove what nobody uses any more, last first. Returns it, and the work it was."""
    gone, removed = [], NOTHING
    for node in sorted(set(nodes), reverse=True):
        if not node.users:
            removed += work([node])
            graph.erase_node(node)
            matcher.removed(node)
            gone.append(node)
    return gone, removed


def replace_found(gm: GraphModule, matcher: Matcher, rule: str, found: Found, *, falsify: bool) -> Change:
    """Put a recognised op in place of what it computes. What uses a result earlier moves behind it."""
    place = found.place
    for node in reversed(early_users(found)):
        place.append(node)
    meta = {**inherited(rule, found.outputs, found.nodes), NOTE: found.note}
    made = [_call(gm.graph, found.op.target, (), dict(found.args), meta, place)]
    several = not isinstance(val(made[0]), Tensor)
    results = [_call(gm.graph, operator.getitem, (made[0], i), {}, meta, place) for i in range(len(found.outputs))] if several else made[:1]
    made += results if several else []
    for target, *rest in found.then:
        results = [_call(gm.graph, target, (r, *rest), {}, meta, place) for r in results]
        made += results
    new = []
    for result, old in zip(results, found.outputs, strict=True):
        laid_out = as_laid_out(gm.graph, result, val(old), meta, place)
        kept = laid_out[-1] if laid_out else result
        stand_in(kept, old)
        new.append(falsified(gm.graph, kept, place) if falsify else kept)
        made += [*laid_out, new[-1]]
    made = list(dict.fromkeys(made))
    for n in made:
        matcher.added(n, place)
    hand_over(matcher, found.outputs, new)
    gone, removed = erased(gm.graph, matcher, found.nodes)
    return Change([*new, *(n for n in made if n not in new)], gone, removed)


def _call(graph: Graph, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], meta: dict[str, Any], before: Node) -> Node:
    with graph.inserting_before(before):
        node = graph.call_function(target, args, kwargs)
    node.meta = {**meta, "val": None}
    node.meta["val"] = evaluated(node)
    return node


def as_laid_out(graph: Graph, new: Node, old: Tensor, meta: dict[str, Any], before: Node) -> list[Node]:
    """Views further on were made for the old strides; where a result has others, a copy restores them.

    Returns:
        The nodes that do so, the result last; none where nothing is to be done, or the old strides leave gaps or overlap.
    """
    if same_places(val(new), old):
        return []
    order = sorted(range(old.ndim), key=lambda dim: _stride(old, dim), reverse=True)
    copied, dense = torch.ops.aten.clone.default, {"memory_format": torch.contiguous_format}
    if order == list(range(old.ndim)):
        steps = [(copied, (), dense)]
    else:
        back = sorted(range(old.ndim), key=order.__getitem__)
        steps = [(torch.ops.aten.permute.default, (order,), {}), (copied, (), dense), (torch.ops.aten.permute.default, (back,), {})]
    made: list[Node] = []
    for target, args, kwargs in steps:
        made.append(_call(graph, target, (made[-1] if made else new, *args), kwargs, meta, before))
    if same_places(val(made[-1]), old):
        return made
    for node in reversed(made):
        graph.erase_node(node)
    return []


def _stride(value: Tensor, dim: int) -> float:
    """A stride for comparing: a symbolic one as it was when traced, if data does not decide it. Whether it holds for other sizes is checked."""
    stride = value.stride(dim)
    return float(stride if isinstance(stride, int) else stride.node.hint or 0)
