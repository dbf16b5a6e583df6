"""Sibling linears become one matmul on their stacked weights, where that pays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise, takewhile
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from hfgraph.graph.alias import Aliases
from hfgraph.graph.cost import number, work
from hfgraph.graph.memory import STACK
from hfgraph.graph.op import NAMESPACE
from hfgraph.graph.origin import SITE, module_path, origin
from hfgraph.graph.replacing import FALSE, FROM, REPLACES, RULES
from hfgraph.graph.rewrite import Event
from hfgraph.graph.siblings import Siblings, siblings
from hfgraph.graph.values import arguments, evaluated, same_layout, val

aten = torch.ops.aten
NAME = "merged_linear"
# Most rows of input for which one matmul is the faster, by device and dtype; `None` stands for every other dtype.
# On a CPU measured (`benchmarks/merged.py`, `benchmarks/results/merged-cpu.json`). On a GPU not measured here: there it saves
# launches and fills more of the device while rows are few, and costs nothing when they are many.
PAYS: dict[tuple[str, torch.dtype | None], float] = {("cuda", None): math.inf, ("cpu", torch.bfloat16): 64}
# Results of these have the strides of what is scattered into.
_SCATTERS = frozenset({aten.slice_scatter.default, aten.select_scatter.default, aten.diagonal_scatter.default})
# Operators for which the strides of what they read matter.
_FUSSY = frozenset({aten.as_strided.default, aten.view_as_complex.default, aten.view.dtype})


def merge(gm: GraphModule, *, always: bool = False, sabotage: bool = False) -> tuple[list[Event], list[Event]]:
    """Merge sibling linears, in place. Returns the groups, with a reason where they stay apart because it does not pay;
    and the linears of one input that are no group.

    A stack stands in the graph as a concatenation of parameters, marked `STACK`: the graph means the same wherever it runs.

    Args:
        always: also where it was not measured to pay.
        sabotage: falsify the results, to show that verification catches it.
    """
    found: list[Event] = []
    missed: list[Event] = []
    layouts, stacks, new = _Layouts(gm), _Stacks(gm), []
    for group in siblings(gm):
        if group.reason:
            missed.append(_event(group, f"{NAME}: {len(group.linears)} linears of one input, but {group.reason}"))
        elif not always and (reason := _does_not_pay(group)):
            found.append(_event(group, reason))
        else:
            linear, parts = _merged(gm, group, layouts, stacks, sabotage)
            found.append(_event(group, made=linear))
            _erase(gm, group.linears, parts)
            new += parts
    _refresh(gm, new)
    return found, missed


def _does_not_pay(group: Siblings) -> str | None:
    x = val(arguments(group.first)["input"])
    rows = math.prod(number(s) for s in x.shape[:-1])
    most = PAYS.get((x.device.type, x.dtype), PAYS.get((x.device.type, None), 0))
    return None if rows <= most else f"apart: {rows} rows in {str(x.dtype).removeprefix('torch.')} are not faster at once on {x.device.type}"


def _event(group: Siblings, reason: str = "", made: Node | None = None) -> Event:
    first, names = group.first, tuple(n.name for n in group.linears)
    where = origin(first)
    paths = [module_path(n).split(".") for n in group.linears]
    module = ".".join(p[0] for p in takewhile(lambda p: len(set(p)) == 1, zip(*paths, strict=False)))
    if made is None:
        return Event(NAME, first.name, module, where.source, where.code, reason, names)
    return Event(NAME, made.name, module, where.source, where.code, reason, names, work(group.linears), work([made]))


# --- the merged graph ---------------------------------------------------------------------------------


class _Layouts:
    """Which results must stay as contiguous as the model made them. The others become slices of rows that are wider."""

    def __init__(self, gm: GraphModule) -> None:
        self.aliases = Aliases(gm.graph)
        self.leaving = set(gm.graph.output_node().all_input_nodes)

    def matters(self, linear: Node) -> bool:
        """It leaves the graph, is written, or is read by an operator that may have the strides of the trace baked in; or what has its strides does."""
        members = dict.fromkeys(self.aliases.members(linear))
        stack = list(members)
        while stack:
            laid_out_alike = [m for u in stack.pop().users if u.target in _SCATTERS for m in self.aliases.members(u) if m not in members]
            members |= dict.fromkeys(laid_out_alike)
            stack += laid_out_alike
        return any(self.aliases.is_written(m) or m in self.leaving or any(_is_fussy(u) for u in m.users) for m in members)


def _is_fussy(user: Node) -> bool:
    if not isinstance(user.target, OpOverload):
        return user.op == "call_function" and getattr(user.target, "__module__", "") != "_operator"
    return user.target.namespace not in ("aten", NAMESPACE) or user.target in _FUSSY


class _Stacks:
    """One stack for each list of parameters: a group may recur."""

    def __init__(self, gm: GraphModule) -> None:
        self.graph = gm.graph
        self.made: dict[tuple[Node, ...], Node] = {}

    def of(self, parameters: tuple[Node, ...]) -> Node | None:
        if parameters and parameters not in self.made:
            last = [n for n in self.graph.nodes if n.op == "placeholder"][-1]
            with self.graph.inserting_after(last):
                self.made[parameters] = _made(self.graph.call_function(aten.cat.default, (list(parameters),)), {STACK: True})
        return self.made.get(parameters)


def _made(node: Node, meta: dict[str, Any]) -> Node:
    node.meta = {**meta, "val": evaluated(node)}
    return node


def _merged(gm: GraphModule, group: Siblings, layouts: _Layouts, stacks: _Stacks, sabotage: bool) -> tuple[Node, list[Node]]:
    """The one linear, and each member's part of it."""
    first = group.first
    names = tuple(dict.fromkeys(name for n in group.linears for name in n.meta.get(FROM, (n.name,))))
    weight, bias = stacks.of(group.weights), stacks.of(group.biases)
    with gm.graph.inserting_before(first):
        meta = {**_plain(first), RULES: (NAME,), FROM: names}
        linear = _made(gm.graph.call_function(aten.linear.default, (arguments(first)["input"], weight, bias)), meta)
        ends = list(accumulate(val(w).shape[0] for w in group.weights))
        places = [(linear, -1, start, end) for start, end in pairwise([0, *ends])]
        return linear, [_part(gm, n, place, names, layouts.matters(n), sabotage) for n, place in zip(group.linears, places, strict=True)]


def _part(gm: GraphModule, old: Node, place: tuple[Any, ...], names: tuple[str, ...], dense: bool, sabotage: bool) -> Node:
    meta = {**_plain(old), RULES: (NAME,), FROM: names, SITE: NAME}
    node = _made(gm.graph.call_function(aten.slice.Tensor, place), meta)
    if dense:
        node = _made(gm.graph.call_function(aten.clone.default, (node,), {"memory_format": torch.contiguous_format}), meta)
    if sabotage:
        node = _made(gm.graph.call_function(aten.mul.Tensor, (node, FALSE)), meta)
    node.meta[REPLACES] = old.name
    return node


def _plain(node: Node) -> dict[str, Any]:
    return {k: v for k, v in node.meta.items() if k not in ("val", RULES, REPLACES, FROM)}


def _erase(gm: GraphModule, old: Sequence[Node], new: Sequence[Node]) -> None:
    for o, n in zip(old, new, strict=True):
        o.replace_all_uses_with(n)
        gm.graph.erase_node(o)


def _refresh(gm: GraphModule, changed: Iterable[Node]) -> None:
    """Record anew what follows from other strides, as far as it differs; in the autocast regions that it stands in."""
    stale, entered = set(changed), dict[Node, Any]()
    try:
        for node in gm.graph.nodes:
            if node.target is torch.amp.autocast_mode._enter_autocast:
                entered[node] = node.target(*node.args)
            elif node.target is torch.amp.autocast_mode._exit_autocast:
                node.target(entered.pop(node.args[0]))
            elif node.op == "call_function" and not stale.isdisjoint(node.all_input_nodes) and node not in stale:
                value = evaluated(node)
                if _differs(value, val(node)):
                    node.meta["val"] = value
                    stale.add(node)
    finally:
        for region in reversed(entered.values()):
            torch.amp.autocast_mode._exit_autocast(region)


def _differs(new: Any, old: Any) -> bool:
    if isinstance(new, torch.Tensor) and isinstance(old, torch.Tensor):
        return not same_layout(new, old)
    if isinstance(new, list | tuple) and isinstance(old, list | tuple):
        return any(_differs(n, o) for n, o in zip(new, old, strict=True))
    return False
