"""Runs a part of a graph on numbers: concrete sizes in place of symbols, chosen tensors in place of inputs.

That is how recognisers learn what a part computes, whichever way it is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import SymInt, Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import _disable_current_modes

from hfgraph.graph.alias import varies
from hfgraph.graph.values import is_random, is_symbol, val

aten = torch.ops.aten
Sizes = Mapping[sympy.Symbol, int]

# Operators that read only shape, dtype and device of their first operand: what it holds does not matter.
METADATA_ONLY = frozenset(
    {
        aten.sym_size.int, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default,
        aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default,
    }
)  # fmt: skip
# Of these, the second operand's.
_METADATA_SECOND = frozenset({aten.expand_as.default, aten.type_as.default, aten.view_as.default, aten.reshape_as.default})


class CannotEvaluate(Exception):
    """A part of a graph cannot be run on numbers; the text says what stands in the way."""


def value_inputs(node: Node) -> list[Node]:
    """The operands whose values a node depends on."""
    if _is_size(node) or node.target in METADATA_ONLY:
        return []
    found = [n for n in node.all_input_nodes if not _is_size(n)]
    return [n for n in found if n is node.args[0]] if node.target in _METADATA_SECOND else found


def _is_size(node: Node) -> bool:
    return is_symbol(val(node)) or isinstance(val(node), int)


def data(node: Node, known: dict[Node, frozenset[Node]]) -> frozenset[Node]:
    """The graph inputs and constants that a node's values depend on, tensors that are written to, and random numbers; sizes are none. `known` remembers
    answers."""
    stack = [node]
    while stack:
        current = stack[-1]
        if current in known:
            stack.pop()
            continue
        inputs = [] if varies(current) else value_inputs(current)
        waiting = [n for n in inputs if n not in known]
        if waiting:
            stack.extend(waiting)
            continue
        given = current.op in ("placeholder", "get_attr") and isinstance(val(current), Tensor)
        own = frozenset([current]) if given or varies(current) or is_random(current.target) else frozenset()
        known[current] = own.union(*(known[n] for n in inputs))
        stack.pop()
    return known[node]


def size(value: Any, sizes: Sizes) -> Any:
    """A size, or an expression over sizes, as a number."""
    if is_symbol(value):
        expr = sympy.sympify(value.node.expr).subs(sizes)
        if not expr.is_number:
            raise CannotEvaluate(f"the size {value} is not known")
        return int(expr) if isinstance(value, SymInt) else float(expr)
    return value


def shape(node: Node, sizes: Sizes) -> tuple[int, ...]:
    """The shape of a node's value."""
    return tuple(size(s, sizes) for s in val(node).shape)


def symbols(nodes: Sequence[Node]) -> list[sympy.Symbol]:
    """The symbols in the shapes of nodes and in their sizes."""
    found: set[sympy.Symbol] = set()
    for node in nodes:
        value = val(node)
        for s in value.shape if isinstance(value, Tensor) else [value]:
            if isinstance(s, SymInt):
                found |= sympy.sympify(s.node.expr).free_symbols  # type: ignore[arg-type]
    return sorted(found, key=str)


def evaluate(roots: Sequence[Node], sizes: Sizes, given: Mapping[Node, Tensor]) -> list[Tensor]:
    """The values of `roots`.

    Args:
        sizes: a number for every symbol.
        given: values of nodes at which to stop; graph inputs among them.

    Raises:
        CannotEvaluate: an input that is not given, an operator that fails on these values.
    """
    values: dict[Node, Any] = dict(given)
    with torch.no_grad(), _disable_current_modes():
        for node in _order(roots, values):
            values[node] = _run(node, values, sizes)
    return [values[r] for r in roots]


def _order(roots: Sequence[Node], given: Mapping[Node, Any]) -> list[Node]:
    """What must be computed for `roots`, operands first."""
    order: list[Node] = []
    seen = set(given)
    stack = [(r, False) for r in roots]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((n, False) for n in value_inputs(node))
    return order


def _run(node: Node, values: Mapping[Node, Any], sizes: Sizes) -> Any:
    if node.op != "call_function":
        raise CannotEvaluate(f"it depends on the input {node.name}")
    if varies(node):
        raise CannotEvaluate(f"{node.name} is written to")
    if is_random(node.target):
        raise CannotEvaluate(f"{node.name} is random")
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: values[n] if n in values else _blank(n, sizes))
    try:
        return node.target(*plain(args, sizes), **plain(kwargs, sizes))  # type: ignore[operator]
    except Exception as e:
        raise CannotEvaluate(f"{node.name} cannot be evaluated ({type(e).__name__})") from e


def _blank(node: Node, sizes: Sizes) -> Any:
    """A size, or an operand whose values do not matter."""
    value = val(node)
    return torch.empty(shape(node, sizes), dtype=value.dtype) if isinstance(value, Tensor) else size(value, sizes)


def plain(value: Any, sizes: Sizes) -> Any:
    """Numbers in place of symbols, and the CPU in place of any device."""
    if is_symbol(value):
        return size(value, sizes)
    if isinstance(value, torch.device):
        return torch.device("cpu")
    if isinstance(value, list | tuple):
        return type(value)(plain(v, sizes) for v in value)
    if isinstance(value, dict):
        return {k: plain(v, sizes) for k, v in value.items()}
    return value
