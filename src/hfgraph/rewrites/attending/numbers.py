"""Numbers that a tensor holds, as far as the graph says so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

from hfgraph.graph.alias import varies
from hfgraph.graph.values import arguments, val

aten = torch.ops.aten

_SAME = frozenset({aten.to.dtype, aten.detach_.default, aten.detach.default, aten.lift_fresh_copy.default, aten.lift_fresh.default, aten.clone.default})
_FULL = frozenset({aten.full.default, aten.full_like.default, aten.new_full.default, aten.scalar_tensor.default})
_ZEROS = frozenset({aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default})
_VIEWS = frozenset({aten.reshape.default, aten.unsqueeze.default, aten.slice.Tensor, aten.select.int, aten.permute.default})
_TRIANGLES = frozenset({aten.triu.default, aten.tril.default})


def constant(value: Any) -> float | None:
    """The one number that an operand holds, if the graph says so."""
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, Node) or varies(value):
        return None
    if value.op == "get_attr":
        held = getattr(value.graph.owning_module, str(value.target), None)
        return float(held) if isinstance(held, Tensor) and held.numel() == 1 and not isinstance(held, FakeTensor | nn.Parameter) else None
    if is_broadcast(value) or value.target in _SAME:
        return _held(constant(operand(value)), value)
    if value.target in _ZEROS:
        return 0.0
    filled = arguments(value) if value.target in _FULL else {}
    number = filled.get("fill_value", filled.get("s"))
    return _held(float(number), value) if isinstance(number, int | float) else None


def held(number: float, dtype: torch.dtype) -> float | None:
    """A number as a tensor of this dtype holds it: the lowest of one float dtype is infinite in another, whole numbers lose their fraction."""
    if not dtype.is_floating_point and not abs(number) < 2**31:
        return None
    return float(torch.tensor(number, dtype=torch.float64).to(dtype).item())


def _held(number: float | None, node: Node) -> float | None:
    return None if number is None else held(number, val(node).dtype)


def numbers(node: Node) -> frozenset[float] | None:
    """All numbers that a tensor may hold, where they can be told: one number, and zeros beside one triangle of it."""
    if (one := constant(node)) is not None:
        return frozenset({one})
    if varies(node):
        return None
    if node.target in _SAME | _VIEWS or is_broadcast(node):
        below = numbers(operand(node))
        return None if below is None else frozenset(n for b in below if (n := _held(b, node)) is not None)
    inner = numbers(operand(node)) if node.target in _TRIANGLES else None
    return None if inner is None else inner | {0.0}


def is_broadcast(node: Node) -> bool:
    """The operand's own values, repeated; dims are counted from the last, so none moves."""
    return node.target is aten.expand.default


def operand(node: Node, index: int = 0) -> Node:
    """An argument that is a node."""
    found = node.args[index]
    assert isinstance(found, Node)
    return found
