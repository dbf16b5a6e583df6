"""Evaluate a few nodes of a graph on numbers of one's own choosing, at small sizes that fit together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from hfgraph.graph.values import arguments, is_symbol, tensors, val

aten = torch.ops.aten
_SMALL, _LARGE = (2, 3, 5, 7), 16
# Operators that say along which dim they take something apart: there a size is more than a size.
_TAKE_APART = frozenset(
    {aten.slice.Tensor, aten.select.int, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int, aten.unflatten.int}
)
# Operators whose arguments hold sizes of tensors.
_SIZED = frozenset({aten.reshape.default, aten.expand.default})


class Sizes:
    """Small sizes for a region of a graph: symbols become small numbers, and so do large leading sizes of tensors.

    Last dims keep their size: what a region does to features depends on it. Where that is a symbol, too, it is `times`
    what it was when traced, so that two of these show whether the size matters.
    """

    def __init__(self, nodes: Sequence[Node], given: Sequence[Node], times: int = 1) -> None:
        values = [t for n in (*nodes, *given) for t in tensors(val(n))]
        rank = val(given[0]).ndim
        kept = [s for t in values for s in t.shape[-1 if t.ndim <= rank else -2 :]] + [s for n in nodes if n.target in _TAKE_APART for s in _sizes_apart(n)]
        fixed, never = _symbols(kept), {s for s in kept if isinstance(s, int)}
        symbols = _symbols([s for t in values for s in t.shape])
        leading = dict.fromkeys(s for n in given for s in val(n).shape[:-1] if isinstance(s, int) and s > _LARGE)
        small = cycle(_SMALL)
        self._of_symbols: dict[Any, int] = {s: times * hint if s in fixed else next(small) for s, hint in sorted(symbols.items(), key=str)}
        self._of_numbers: dict[Any, int] = {s: next(small) for s in leading if s not in never}

    def __call__(self, size: Any) -> int:
        """The small size in place of a size or a symbol."""
        if isinstance(size, SymInt):
            return int(size.node.expr.subs(self._of_symbols))
        known: Any = self._of_numbers.get(size, size)
        return known

    def shape(self, node: Node) -> tuple[int, ...]:
        """The small shape of a node's value."""
        return tuple(self(s) for s in val(node).shape)

    def arguments(self, node: Node, known: Mapping[Node, Any]) -> tuple[Any, Any]:
        """A node's arguments, with values for nodes and small sizes for sizes."""
        filled: Any = map_arg((node.args, node.kwargs), lambda n: self(val(n)) if is_symbol(val(n)) else known[n])
        if node.target not in _SIZED:
            return filled
        x, sizes = filled[0]
        return (x, [self(s) for s in sizes]), filled[1]


def _symbols(sizes: Iterable[Any]) -> dict[Any, int]:
    """The symbols in sizes, with the numbers that they had when traced."""
    found: dict[Any, int] = {}
    for size in sizes:
        if isinstance(size, SymInt):
            known = size.node.shape_env.backed_var_to_val
            found |= {s: int(known.get(s, _SMALL[-1])) for s in size.node.expr.free_symbols}
    return found


def _sizes_apart(node: Node) -> list[Any]:
    given = arguments(node)
    x, dim = given["self"], given.get("dim", 0)
    return [val(x).shape[dim]] if isinstance(x, Node) and isinstance(val(x), Tensor) and isinstance(dim, int) else []


def run(nodes: Iterable[Node], known: Mapping[Node, Any], sizes: Sizes, widen: Callable[[Any], Any] = lambda a: a) -> dict[Node, Any]:
    """Values of `nodes`, which stand in order, from those `known`.

    Args:
        widen: what to put in place of each argument, such as a wider dtype.
    """
    env = dict(known)
    with torch.no_grad(), _disable_current_modes():
        for node in nodes:
            args, kwargs = sizes.arguments(node, env)
            env[node] = node.target(*tree_map(widen, args), **tree_map(widen, kwargs))  # type: ignore[operator]
    return env


def wider(argument: Any) -> Any:
    """Float dtypes become float64: what is left is what a region means, without rounding."""
    return torch.float64 if isinstance(argument, torch.dtype) and argument.is_floating_point else argument
