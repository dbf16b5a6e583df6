"""Lowering: each op gets a kernel where one applies and wins; otherwise its reference is inlined by AOTAutograd."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from hfgraph.errors import KernelRefused
from hfgraph.graph.op import OPS, Implementation, Op
from hfgraph.graph.replacing import REPLACES, as_laid_out, stand_in
from hfgraph.graph.values import evaluated, is_dense, is_trained, same_places, tensors, val


def lower(gm: GraphModule, kernels: Mapping[str, str]) -> int:
    """Replace ops by implementations, in place. Returns how many.

    Args:
        kernels: op -> implementation asked for by the user.

    Raises:
        KernelRefused: an implementation asked for cannot take a call in this graph.
    """
    ops = {op.target: op for op in OPS.values()}
    trained = is_trained(gm.graph)  # then the reference, which AOTAutograd differentiates and fuses, is the better choice
    lowered = 0
    for node in gm.graph.nodes:
        op = ops.get(node.target)
        if op is None:
            continue
        chosen = _asked_for(op, node, kernels[op.name]) if op.name in kernels else _automatic(op, node, trained)
        if chosen is not None:
            _put(gm.graph, op, node, chosen)
            lowered += 1
    return lowered


def _put(graph: Graph, op: Op, node: Node, chosen: Implementation) -> None:
    """The kernel in place of the op. Kernels return contiguous tensors: where the reference does not, a copy restores its strides.

    Raises:
        KernelRefused: no copy can restore them.
    """
    node.target = chosen.target
    results = [node] if isinstance(val(node), Tensor) else [n for n in node.users if n.target is operator.getitem]
    wanted = [val(r) for r in results]
    for changed in dict.fromkeys((node, *results)):
        changed.meta["val"] = evaluated(changed)
    for result, old in zip(results, wanted, strict=True):
        users = list(result.users)
        made = as_laid_out(graph, result, old, {k: v for k, v in result.meta.items() if k != REPLACES}, result.next)
        if not made and not same_places(val(result), old):
            raise KernelRefused(op.name, chosen.name, f"it returns contiguous tensors, and the model goes on with strides {tuple(old.stride())}")
        if made:
            stand_in(made[-1], result)
            for user in users:
                user.replace_input_with(result, made[-1])


def _asked_for(op: Op, node: Node, name: str) -> Implementation | None:
    if name == "reference":
        return None
    implementation = op.implementations[name]
    device = _device(node)
    if device != implementation.device:
        raise KernelRefused(op.name, name, f"it runs on {implementation.device}, the tensors are on {device}")
    args, kwargs = _values(node)
    if not implementation.accepts(*args, **kwargs):
        shapes = ", ".join(f"{tuple(a.shape)} {a.dtype}" for a in args if isinstance(a, Tensor))
        raise KernelRefused(op.name, name, f"it does not take these arguments ({shapes})")
    if (problem := implementation.problem()) is not None:
        raise KernelRefused(op.name, name, problem)
    return implementation


def _automatic(op: Op, node: Node, trained: bool) -> Implementation | None:
    if trained or not _is_laid_out_densely(node):
        return None
    device = _device(node)
    args, kwargs = _values(node)
    winning = (i for i in op.implementations.values() if i.device == device and i.wins(*args, **kwargs))
    return next((i for i in winning if i.problem() is None), None)


def _device(node: Node) -> str:
    return next(v.device.type for a in node.all_input_nodes if isinstance(v := val(a), Tensor))


def _values(node: Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return map_arg((node.args, node.kwargs), val)


def _is_laid_out_densely(node: Node) -> bool:
    """No copy has to restore the reference's strides, which might cost what a kernel gains."""
    return all(is_dense(t) for t in tensors(val(node)))
