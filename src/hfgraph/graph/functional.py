"""In-place operators become out-of-place where nobody can tell; the rest are mutations that the matcher respects."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from hfgraph.graph.alias import FRESH, Aliases
from hfgraph.graph.evaluate import value_inputs
from hfgraph.graph.values import arguments, autocast_is_on, evaluated, is_random, is_trained, regions, same_layout, same_shape, val, written, written_nodes

aten = torch.ops.aten
_SCATTER = {aten.slice.Tensor: aten.slice_scatter.default, aten.select.int: aten.select_scatter.default}


def functionalise(gm: GraphModule) -> int:
    """Rewrite in-place operators on storage that is born and dies in the graph. Returns how many were rewritten.

    `x.op_(y)` becomes `x' = x.op(y)`, later readers of x read x'. That is right unless an *other* alias of x is read
    later. Writing into a slice of a fresh tensor (`k[..., :n].copy_(v)`) becomes `slice_scatter`.
    """
    if not any(written_nodes(n) for n in gm.graph.nodes) or autocast_is_on(()):
        return 0
    sweep = _Sweep(gm)
    return sum(sweep.visit(node) for node in list(gm.graph.nodes))


@cache
def _twin(target: OpOverload) -> OpOverload | None:
    """`aten.div_.Tensor` -> `aten.div.Tensor`, by the types of the arguments; None where it returns a view, or is none."""
    name = target._schema.name.split("::")[1]
    packet = getattr(aten, name[:-1], None) if name.endswith("_") and not name.endswith("__") else None
    wanted = [(a.name, str(a.type)) for a in target._schema.arguments]
    for overload in packet.overloads() if packet is not None else ():
        twin: OpOverload = getattr(packet, overload)
        fresh = all(r.alias_info is None for r in twin._schema.returns)
        if fresh and [(a.name, str(a.type)) for a in twin._schema.arguments] == wanted:
            return twin
    return None


class _Sweep:
    """One pass over the graph in order. New nodes stand at the position of what they replace."""

    def __init__(self, gm: GraphModule) -> None:
        self.graph = gm.graph
        self.position = {n: i for i, n in enumerate(gm.graph.nodes)}
        self.aliases = Aliases(gm.graph)
        self.modes = regions(gm.graph)
        self.trained = is_trained(gm.graph)
        self.later: dict[Node, Node] = {}  # what holds a tensor's value after a write to it
        self.ahead: dict[Node, list[Node]] = {}
        self.awake: dict[Node, list[Node]] = {}

    def visit(self, node: Node) -> bool:
        for old in [i for i in node.all_input_nodes if i in self.later]:
            node.replace_input_with(old, self.latest(old))
        x = self.candidate(node)
        if x is None:
            return False
        awake = self.read_after(node, x)
        if awake <= {x}:
            new = self.replace(node, x)
        elif self.writes_into_slice(node, x, awake):
            new = self.scatter(node, x)
        else:
            return False
        if new is not None:
            self.aliases.inherit(new, x)
            for r in self.aliases.roots(x):
                self.awake[r].append(new)
        return new is not None

    def candidate(self, node: Node) -> Node | None:
        """The one tensor that a node writes, where no caller can see it and there is a twin that gives the same."""
        if not isinstance(node.target, OpOverload) or written(node.target) != ("self",) or is_random(node.target):
            return None
        x = arguments(node)["self"]
        if not isinstance(x, Node) or _twin(node.target) is None or self.aliases.is_input(x):
            return None
        # Copied over, what x was computed from gets a gradient of zeros; what takes its place would leave it without any.
        if self.trained and node.target is aten.copy_.default and any(value_inputs(r) for r in self.aliases.roots(x)):
            return None
        # Written under no_grad, x keeps its history; a new tensor made there would have none.
        changed = any(self.modes[r] != self.modes[node] for r in self.aliases.roots(x))
        return None if changed or autocast_is_on(self.modes[node]) else x

    def latest(self, old: Node) -> Node:
        """The node that holds the tensor's value now."""
        new = old
        while new in self.later:
            new = self.later[new]
        if new is not old:
            self.later[old] = new
        return new

    def read_after(self, node: Node, x: Node) -> set[Node]:
        """Which of those before `node` that share storage with `x` are used after it.

        What is used no more stays so, for only new nodes get users. So each member of a class is looked at while it lives, not at every write.
        """
        here, found = self.position[node], set[Node]()
        for r in self.aliases.roots(x):
            if r not in self.ahead:
                self.ahead[r], self.awake[r] = self.aliases.members(r)[::-1], []
            ahead, awake = self.ahead[r], self.awake[r]
            while ahead and self.position[ahead[-1]] < here:
                awake.append(ahead.pop())
            awake[:] = [m for m in awake if any(self.position.get(u, here) > here for u in m.users)]
            found.update(self.latest(m) for m in awake)
        return found

    def writes_into_slice(self, node: Node, x: Node, awake: set[Node]) -> bool:
        """x is a slice of a fresh tensor, made for this write alone, and only that tensor is read later."""
        base = x.args[0] if x.target in _SCATTER else None
        return isinstance(base, Node) and not node.users and awake <= {base}

    def replace(self, node: Node, x: Node) -> Node | None:
        new = self.value(node, fresh=True)
        if not same_layout(val(new), val(x)):
            self.forget(new)
            return None
        new.meta["val"] = val(x)
        node.replace_all_uses_with(new)
        self.redirect(x, new, node)
        return new

    def scatter(self, node: Node, x: Node) -> Node | None:
        base = x.args[0]
        assert isinstance(base, Node) and isinstance(x.target, OpOverload)
        whole = self.call(node, _SCATTER[x.target], (base, self.value(node, fresh=False), *x.args[1:]), dict(x.kwargs))
        if not same_layout(val(whole), val(base)):
            self.forget(whole)
            return None
        whole.meta["val"] = val(base)
        self.redirect(base, whole, node)
        return whole

    def value(self, node: Node, *, fresh: bool) -> Node:
        """What the in-place operator would leave in its tensor, in that tensor's dtype."""
        assert isinstance(node.target, OpOverload)
        x = arguments(node)["self"]
        if node.target is aten.copy_.default:
            source = arguments(node)["src"]
            if val(source).dtype != val(x).dtype:
                source = self.call(node, aten.to.dtype, (source, val(x).dtype))
            if not same_shape(val(source), val(x)):
                source = self.call(node, aten.expand_as.default, (source, x))
            return self.call(node, aten.clone.default, (source,)) if fresh else source
        twin = _twin(node.target)
        assert twin is not None
        new = self.call(node, twin, node.args, node.kwargs)
        return new if val(new).dtype == val(x).dtype else self.call(node, aten.to.dtype, (new, val(x).dtype))

    def call(self, node: Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Node:
        """A new node before `node`."""
        with self.graph.inserting_before(node):
            new = self.graph.call_function(target, args, kwargs or {})
        new.meta = {**node.meta, FRESH: True}
        new.meta["val"] = evaluated(new)
        self.position[new] = self.position[node]
        self.modes[new] = self.modes[node]
        return new

    def redirect(self, old: Node, new: Node, node: Node) -> None:
        """Readers of `old` after `node` will read `new`, when the sweep comes to them; `node` goes."""
        self.later[old] = new
        self.graph.erase_node(node)

    def forget(self, new: Node) -> None:
        """Take back nodes made in vain."""
        while not new.users and new.meta.get(FRESH) and self.position.get(new) is not None:
            below = new.args[1] if new.target in _SCATTER.values() else new.args[0]
            self.graph.erase_node(new)
            if not isinstance(below, Node) or below.users or not below.meta.get(FRESH):
                return
            new = below
