"""Recognisers: rules for what no pattern can say. They look at an operator, evaluate what surrounds it on numbers of their
own choosing, and so read off what it computes, however it is spelled.

A pattern says how something is written. A recogniser asks what it *does*: which keys a mask allows, which dims a rotation pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from hfgraph.graph.alias import Aliases
from hfgraph.graph.cse import ValueNumbers
from hfgraph.graph.op import Op
from hfgraph.graph.values import evaluated, is_pure, same_shape, val


@dataclass(frozen=True, eq=False)
class Found:
    """A site: the values `outputs` are what `op` computes from `args`.

    Attributes:
        args: arguments of the op by name; graph nodes where tensors or sizes belong. All stand before the last output.
        nodes: the nodes whose work the op does, `outputs` among them. Those that something else needs as well stay.
        private: those of `nodes` that nothing else may need; otherwise their work would be done twice.
        note: what the report says of this site, in words.
        then: operators, with what follows their first argument, that turn the op's result into the output.
    """

    outputs: tuple[Node, ...]
    op: Op
    args: Mapping[str, Any]
    nodes: tuple[Node, ...]
    private: tuple[Node, ...] = ()
    then: tuple[tuple[Any, ...], ...] = ()
    note: str = ""

    @property
    def place(self) -> Node:
        """The node before which the op goes."""
        return max(self.outputs)


@dataclass(frozen=True, eq=False)
class Refusal:
    """A site that is what the recogniser looks for, and that it leaves alone: why, in words, and the first node that differs."""

    reason: str
    at: Node
    nodes: tuple[Node, ...] = ()


@dataclass(frozen=True, eq=False)
class Example:
    """One spelling, for the tests: a function of tensors in which the recogniser must find its op once.

    Attributes:
        make: gives the function's arguments for a dtype and a seed.
        equal: attributes of the op that, changed, leave the function what it is for these arguments.
        fixed: sizes that are numbers in every model, such as those of heads; all others may be symbols.
    """

    name: str
    function: Callable[..., Tensor]
    make: Callable[[torch.dtype, int], tuple[Tensor, ...]]
    equal: tuple[str, ...] = ()
    fixed: tuple[int, ...] = ()


class View:
    """What a recogniser sees of a graph, and how it adds helper nodes to it.

    Attributes:
        memo: results that several sites share (one mask serves all layers), by keys of the recogniser's own.
    """

    def __init__(self, graph: Graph, aliases: Aliases, numbers: ValueNumbers, added: Callable[[Node, Node], None]) -> None:
        self.graph = graph
        self.aliases = aliases
        self.numbers = numbers
        self.memo: dict[Any, Any] = {}
        self._added = added
        self._helpers: set[Node] = set()

    def same(self, a: Any, b: Any) -> bool:
        """Two arguments are the same value."""
        return self.numbers.same(a, b) if isinstance(a, Node) and isinstance(b, Node) else a is b or (not isinstance(a, Node) and a == b)

    def call(self, target: Any, *args: Any, before: Node) -> Node:
        """A helper node before another one. It goes by itself if nothing comes to use it."""
        with self.graph.inserting_before(before):
            new = self.graph.call_function(target, args)
        new.meta = {k: v for k, v in before.meta.items() if k != "val" and not k.startswith("hfgraph_")}
        new.meta["val"] = evaluated(new)
        self._added(new, before)
        self._helpers.add(new)
        return new

    def read_by(self, nodes: Iterable[Node], first: Node) -> list[Node]:
        """`nodes`, and what helpers among them read that stand behind `first`."""
        found, stack = [], list(nodes)
        while stack:
            node = stack.pop()
            stack += node.all_input_nodes if node in self._helpers and first < node else []
            found.append(node)
        return found


@dataclass(frozen=True, eq=False)
class Recogniser:
    """Looks at each node with one of the `anchors` and says what it is the end of.

    An anchor is an operator, or the name of one that another library may or may not have registered, such as "library::product".
    ``recognise(node, view)`` returns the site, the reason to leave it alone, or None where it is something else. It must
    not change the graph but through ``view.call``.
    """

    anchors: frozenset[Any]
    recognise: Callable[[Node, View], Found | Refusal | None]
    op: Op
    examples: tuple[Example, ...]
    name: str = ""
    stage: str = ""
    digest: str = ""

    def begins_at(self, target: Any) -> bool:
        """Whether an operator is one of the anchors."""
        return target in self.anchors or (isinstance(target, OpOverload) and target._schema.name in self.anchors)

    def named(self, name: str, stage: str, file: str) -> Recogniser:
        """The recogniser as discovered; see `Rule.named`."""
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
        return replace(self, name=name, stage=stage, digest=digest)


def obstacle(found: Found, view: View) -> Refusal | None:
    """Why a site cannot be replaced although it is one: something else needs a value of it, or a value is written in between."""
    inside, place = {*found.nodes, *found.outputs}, found.place
    early = early_users(found)
    bound = next((n for n in early if not _movable(n, place, view)), None)
    needed = next((a for a in found.args.values() if isinstance(a, Node) and a in early), None)
    if bound is not None or needed is not None:
        return Refusal(f"{early[0].name} uses a result before all inputs are there", early[0], found.nodes)
    for node in found.private:
        outside = [u for u in node.users if u not in inside]
        if node not in found.outputs and outside:
            return Refusal(f"{node.name} is needed by {outside[0].name} as well", node, found.nodes)
    first = min((*found.nodes, *found.outputs))
    leaves = view.read_by((a for a in found.args.values() if isinstance(a, Node)), first)
    write = _written(found, leaves, first, view)
    if write is not None:
        return Refusal(f"{write.name} writes one of the values in between", write, found.nodes)
    region = view.numbers.region(place)
    elsewhere = next((n for n in (*found.private, *found.outputs) if view.numbers.region(n) != region), None)
    if elsewhere is not None:
        return Refusal(f"{elsewhere.name} lies in another grad or autocast region", elsewhere, found.nodes)
    return None


def _written(found: Found, leaves: Iterable[Node], first: Node, view: View) -> Node | None:
    """A write to a value between the time when the model reads it and that when the op does. What no node of the site reads
    itself, the recogniser has found behind other nodes, and those may have read it long before, but not before it was there."""
    direct = {n for node in found.nodes for n in node.all_input_nodes}
    leaves = dict.fromkeys(leaves)
    for value in (*found.nodes, *found.outputs, *leaves):
        writes = view.aliases.writes([value])
        behind = view.aliases.readers(value) if writes and value in leaves and value not in direct else []
        since = max(value, min([first, *(r for r in behind if value < r)]))
        for write in writes:
            if since < write < found.place:
                return write
    return None


def early_users(found: Found) -> list[Node]:
    """What uses a result before the op's place, directly or through others, in order: it would have to move behind the op."""
    place, early = found.place, set[Node]()
    stack: list[Node] = list(found.outputs)
    while stack:
        new = [u for u in stack.pop().users if u < place and u not in found.outputs and u not in found.nodes and u not in early]
        early.update(new)
        stack += new
    return sorted(early)


def _movable(node: Node, place: Node, view: View) -> bool:
    """Computed a little later, in `place`, the node gives the same."""
    written = any(view.aliases.is_written(n) for n in (node, *node.all_input_nodes))
    return is_pure(node) and not written and view.numbers.region(node) == view.numbers.region(place)


def misfit(found: Found) -> str | None:
    """How the op's results would differ from the values they replace, in shape, dtype or device, on fake tensors."""
    try:
        results = _on_fakes(found)
    except RuntimeError as e:
        return f"the op does not take these arguments ({e})"
    for node, new in zip(found.outputs, results, strict=True):
        old = val(node)
        if new.dtype != old.dtype or new.device != old.device or not same_shape(new, old):
            return f"the op would give {new.dtype} {tuple(new.shape)} instead of {old.dtype} {tuple(old.shape)}"
    return None


def _on_fakes(found: Found) -> list[Tensor]:
    args = {n: val(a) if isinstance(a, Node) else a for n, a in found.args.items()}
    with val(found.outputs[0]).fake_mode, torch.no_grad():
        results = found.op(**args)
        results = [results] if isinstance(results, Tensor) else list(results)
        for target, *rest in found.then:
            results = [target(r, *map_arg(rest, val)) for r in results]
    return results
