"""Lowering: each op gets a kernel where one applies and wins; otherwise its reference is inlined by AOTAutograd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from hfgraph.errors import KernelRefused
from hfgraph.graph.op import OPS, Implementation, Op
from hfgraph.graph.values import is_dense, tensors, val


def lower(gm: GraphModule, kernels: Mapping[str, str]) -> int:
    """Replace ops by implementations, in place. Returns how many.

    Args:
        kernels: op -> implementation asked for by the user.

    Raises:
        KernelRefused: an implementation asked for cannot take a call in this graph.
    """
    ops = {op.target: op for op in OPS.values()}
    trained = _is_trained(gm)
    lowered = 0
    for node in gm.graph.nodes:
        op = ops.get(node.target)
        if op is None:
            continue
        chosen = _asked_for(op, node, kernels[op.name]) if op.name in kernels else _automatic(op, node, trained)
        if chosen is not None:
            node.target = chosen.target
            lowered += 1
    return lowered


def _is_trained(gm: GraphModule) -> bool:
    """Gradients may be asked for: then the reference, which AOTAutograd differentiates and fuses, is the better choice."""
    # Values recorded while tracing are detached; Dynamo's are not.
    inputs = [n.meta.get("example_value", val(n)) for n in gm.graph.nodes if n.op == "placeholder"]
    return torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in inputs)


def _asked_for(op: Op, node: Node, name: str) -> Implementation | None:
    if name == "reference":
        return None
    implementation = op.implementations[name]
    device = _device(node)
    if device != implementation.device:
        raise KernelRefused(op.name, name, f"it runs on {implementation.device}, the tensors are on {device}")
    args, kwargs = _values(node)
    if not _is_laid_out_densely(node):
        raise KernelRefused(op.name, name, "it returns contiguous tensors, and the model goes on with other strides (of a transposed input)")
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
    """Kernels return contiguous tensors. Where the reference does not, a later view of the result might not exist."""
    return all(is_dense(t) for t in tensors(val(node)))
