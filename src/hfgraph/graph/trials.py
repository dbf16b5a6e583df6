"""Numbers to try in place of a graph's symbolic sizes: what was traced, and others that its guards admit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sympy
from torch import SymInt, Tensor
from torch.fx import Node

from hfgraph.graph.evaluate import Sizes, symbols
from hfgraph.graph.values import val

_NEAR = 256  # numbers in a row that are tried for one that a symbol's guards admit
_SHIFTS = 16  # of all symbols together, where guards tie them to each other


def trials(nodes: Sequence[Node], lengths: Sequence[int]) -> Iterator[Sizes]:
    """Sizes for the symbols of `nodes`: those traced first, then what is nearest to every one of `lengths` in turn."""
    found = symbols(nodes)
    env = _environment(nodes)
    if env is None:
        yield {}
        return
    traced = {s: int(env.backed_var_to_val[s]) for s in found if s in env.backed_var_to_val}
    seen = []
    for sizes in (traced, *(nearest(nodes, n) for n in lengths)):
        if sizes is not None and len(sizes) == len(found) and sizes not in seen and _admitted(sizes, env):
            seen.append(sizes)
            yield sizes


def nearest(nodes: Sequence[Node], length: int) -> Sizes | None:
    """Sizes of at least `length`, the least ones that the graph's guards admit, or the largest that they admit at all; None where none were found.

    Symbols get different numbers, so that no two are taken for one by chance.
    """
    found, env = symbols(nodes), _environment(nodes)
    for shift in range(_SHIFTS if env is not None else 0):
        sizes = {s: _admitted_near(s, length + 3 * i + shift, env) for i, s in enumerate(found)}
        if _admitted(sizes, env):
            return sizes
    return None


def _admitted_near(symbol: sympy.Symbol, number: int, env: Any) -> int:
    """The least number from here on that a symbol's own guards admit; if there is none, the largest one below."""
    bounds = env.var_to_range.get(symbol)
    low, high = (bounds.lower, bounds.upper) if bounds is not None else (0, sympy.oo)
    ends = high < number + _NEAR
    up = range(max(number, int(low)), int(high) + 1 if ends else number + _NEAR)
    down = range(int(high), max(int(low) - 1, int(high) - _NEAR), -1) if ends else ()
    guards = [g.expr for g in env.guards if g.expr.free_symbols == {symbol}]
    return next((n for n in (*up, *down) if all(g.subs(symbol, n) != sympy.false for g in guards)), number)


def _environment(nodes: Sequence[Node]) -> Any:
    """What is known of the symbols, where there are any."""
    return next((s.node.shape_env for n in nodes for s in _sizes(n) if isinstance(s, SymInt)), None)


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
