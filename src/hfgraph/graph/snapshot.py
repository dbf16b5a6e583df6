"""A graph as people read it: plain text, without tensors, so that a report can keep it when the graph is gone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node

from hfgraph.graph.cost import cost, is_operator
from hfgraph.graph.origin import INPUT, modules, origin
from hfgraph.graph.replacing import FROM, RULES
from hfgraph.graph.unify import label
from hfgraph.graph.values import val

_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}


@dataclass(frozen=True, slots=True)
class Shown:
    """One node.

    Attributes:
        label: the operator as people call it, or the name of an input.
        kind: "input", "constant", "call", "item" (one of several results of a call) or "output".
        call: the operator with its arguments.
        value: dtype and shape, e.g. `f32 [2, 16, 64]`; several for several results.
        module, source, code: see `hfgraph.graph.origin.Origin`.
        inputs: names of the nodes it reads.
        rules: rules that made it, in order; empty where the model's code made it.
        done: names of the canonical graph's nodes whose work it does.
    """

    name: str
    label: str
    kind: str
    call: str
    value: str
    module: str
    source: str
    code: str
    inputs: tuple[str, ...]
    rules: tuple[str, ...]
    done: tuple[str, ...]
    flops: int
    bytes: int


@dataclass(frozen=True)
class Snapshot:
    """A graph's nodes in order, and the class of every module that made some."""

    nodes: tuple[Shown, ...] = ()
    modules: dict[str, str] = field(default_factory=dict)


def snapshot(graph: Graph) -> Snapshot:
    """Take down a graph."""
    paths: dict[str, str] = {}
    shown = []
    for node in graph.nodes:
        paths.update(modules(node))
        shown.append(_shown(node))
    return Snapshot(tuple(shown), paths)


_KINDS = {"placeholder": "input", "get_attr": "constant", "output": "output"}


def _shown(node: Node) -> Shown:
    kind = _KINDS.get(node.op) or ("call" if is_operator(node) else "item")
    name = label(node) if kind in ("call", "item") else node.meta.get(INPUT, str(node.target))
    price = cost(node)
    return Shown(
        name=node.name,
        label=name,
        kind=kind,
        call=_call(node) if kind in ("call", "item") else name,
        value=_described(val(node)),
        **origin(node)._asdict(),
        inputs=tuple(n.name for n in node.all_input_nodes),
        rules=node.meta.get(RULES, ()),
        done=node.meta.get(FROM, ()),
        flops=price.flops,
        bytes=price.bytes,
    )


def _call(node: Node) -> str:
    given = [_argument(a) for a in node.args] + [f"{k}={_argument(v)}" for k, v in node.kwargs.items()]
    return f"{label(node)}({', '.join(given)})"


def _argument(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_argument, value))}]"
    return str(value).removeprefix("torch.")


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        name = str(value.dtype).removeprefix("torch.")
        kind = name.rstrip("0123456789")
        return f"{_SHORT.get(kind, kind)}{name[len(kind) :]} [{', '.join(map(str, value.shape))}]"
    if isinstance(value, list | tuple):
        return ", ".join(_described(v) for v in value)
    return "" if value is None else str(value)
