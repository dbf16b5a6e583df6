"""Which graphs are legal after which stage: stated as checks, run by the pipeline after every pass."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node

from hfgraph.graph.op import NAMESPACE, OPS
from hfgraph.graph.spelling import unspelled
from hfgraph.graph.values import val

Check = Callable[[GraphModule], "str | None"]


def only_functions(gm: GraphModule) -> str | None:
    """No methods, no modules: operators, constants, inputs, one output."""
    for node in gm.graph.nodes:
        if node.op not in ("placeholder", "get_attr", "call_function", "output"):
            return f"{node.name} is a {node.op} of {node.target}"
        if node.op == "call_function" and not (isinstance(node.target, OpOverload | HigherOrderOperator) or _is_plain(node)):
            return f"{node.name} calls {node.target}, which is no operator"
    return None


def _is_plain(node: Node) -> bool:
    """Arithmetic on sizes, and switches of modes. `round` is the one builtin that a symbolic number leaves in a graph."""
    module = getattr(node.target, "__module__", "") or ""
    return node.target in (operator.getitem, round) or module in ("_operator", "math") or module.split(".")[0] == "torch"


def values_known(gm: GraphModule) -> str | None:
    """Every tensor operator carries a fake value: later passes read shapes and dtypes from it."""
    for node in gm.graph.nodes:
        if isinstance(node.target, OpOverload) and node.target._schema.returns and "val" not in node.meta:
            return f"{node.name} has no recorded value"
        if node.op == "get_attr" and isinstance(getattr(gm, str(node.target), None), FakeTensor):
            return f"{node.name} is a constant without a value"
    return None


def one_spelling(gm: GraphModule) -> str | None:
    """Nothing is left that the spelling table would change."""
    node = unspelled(gm)
    return None if node is None else f"{node.name} ({node.target}) is not in canonical form"


def known_ops(gm: GraphModule) -> str | None:
    """Every hfgraph operator is a registered op, whole."""
    for node in gm.graph.nodes:
        if isinstance(node.target, OpOverload) and node.target.namespace == NAMESPACE and node.target._schema.name.split("::")[1] not in OPS:
            return f"{node.name} calls {node.target}, which is no registered op"
    return None


def lowered(gm: GraphModule) -> str | None:
    """Every hfgraph operator is an op (inlined by AOTAutograd) or one of its implementations, on its device."""
    implementations = {i.target: i for op in OPS.values() for i in op.implementations.values()}
    for node in gm.graph.nodes:
        found = implementations.get(node.target)
        if found is not None and any(isinstance(val(a), Tensor) and val(a).device.type != found.device for a in node.all_input_nodes):
            return f"{node.name} calls {found.name} for {found.device} on another device"
    return None


LEGAL: Mapping[str, tuple[Check, ...]] = {
    "canonical": (only_functions, values_known, one_spelling),
    "recognise": (only_functions, values_known, known_ops),
    "fuse": (only_functions, values_known, known_ops),
    "merge": (only_functions, values_known, known_ops),
    "lower": (only_functions, values_known, lowered),
}


def problem(gm: GraphModule, stage: str) -> str | None:
    """The first way in which `gm` breaks the rules of `stage`, or None."""
    try:
        gm.graph.lint()
    except Exception as e:
        return f"lint: {e}"
    return next((found for check in LEGAL[stage] if (found := check(gm)) is not None), None)
