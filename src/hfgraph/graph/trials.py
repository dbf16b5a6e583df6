"""Numbers to try in place of a graph's symbolic sizes: what was traced, and others that its guards admit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sympy
from torch import SymInt, Tensor
from torch.fx import Node

from hfgraph.graph.evaluate import Sizes, symbols
from hfgraph.graph.values import val


def trials(nodes: Sequence[Node], lengths: Sequence[int]) -> Iterator[Sizes]:
    """Sizes for the symbols of `nodes`: those traced first, then every one of `lengths` in turn.

    Symbols get different numbers, so that no two are taken for one by chance. What a guard of the graph forbids is left out.
    """
    found = symbols(nodes)
    env = next((s.node.shape_env for n in nodes for s in _sizes(n) if isinstance(s, SymInt)), None)
    if env is None:
        yield {}
        return
    traced = {s: int(env.backed_var_to_val[s]) for s in found if s in env.backed_var_to_val}
    seen = []
    for length in (None, *lengths):
        sizes = traced if length is None else {s: length + 3 * i for i, s in enumerate(found)}
        if len(sizes) == len(found) and sizes not in seen and _admitted(sizes, env):
            seen.append(sizes)
            yield sizes


def _sizes(node: Node) -> Sequence[Any]:
    value = val(node)
    return value.shape if isinstance(value, Tensor) else [value]


def _admitted(sizes: Sizes, env: Any) -> bool:
    for symbol, number in sizes.items():
        bounds = env.var_to_range.get(symbol)
        if bounds is not None and not (bounds.lower <= number <= bounds.upper):
            return False
    known = set(sizes)
    return all(g.expr.subs(sizes) != sympy.false for g in env.guards if g.expr.free_symbols <= known)
