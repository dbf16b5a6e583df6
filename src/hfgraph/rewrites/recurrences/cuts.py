"""Where a graph takes a sequence apart: into tokens, into chunks, or into every second token, as scans do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from hfgraph.graph.values import arguments, same_size, val

aten = torch.ops.aten
_PADS = frozenset({aten.pad.default, aten.constant_pad_nd.default})


@dataclass(frozen=True, eq=False)
class Cut:
    """A value that is taken apart along one dim.

    Attributes:
        base: the value; `dim` its dim of tokens, `pieces` what first comes of it.
        length: how many tokens there are; `padded` how many places they are in where they are cut into chunks.
    """

    base: Node
    dim: int
    length: int
    padded: int
    pieces: tuple[Node, ...]


def cuts(graph: Graph) -> list[Cut]:
    """Everything that is taken apart, in all of the ways, into more than one."""
    return [c for c in (*_into_tokens(graph), *_into_halves(graph), *_into_chunks(graph)) if c.length > 1]


def _into_tokens(graph: Graph) -> Iterator[Cut]:
    """Values of which every single token is selected."""
    found: dict[tuple[Node, int], dict[int, list[Node]]] = defaultdict(lambda: defaultdict(list))
    for node in graph.find_nodes(op="call_function", target=aten.select.int):
        base, dim, index = node.args
        length = val(base).shape[dim]  # type: ignore[arg-type,index]
        if isinstance(length, int) and isinstance(index, int) and isinstance(base, Node):
            found[base, dim % val(base).ndim][index % length].append(node)  # type: ignore[operator,index]
    for (base, dim), selected in found.items():
        length = val(base).shape[dim]
        if len(selected) == length:
            yield Cut(base, dim, length, length, tuple(n for nodes in selected.values() for n in nodes))


def _into_halves(graph: Graph) -> Iterator[Cut]:
    """Values of which the even tokens are taken, and the odd ones: so a parallel scan begins."""
    found: dict[tuple[Node, int], dict[int, list[Node]]] = defaultdict(lambda: defaultdict(list))
    for node in graph.find_nodes(op="call_function", target=aten.slice.Tensor):
        given = arguments(node)
        base, dim, start = given["self"], given["dim"], given["start"] or 0
        if isinstance(val(base).shape[dim], int) and isinstance(start, int):
            found[base, dim % val(base).ndim][start if given["step"] == 2 else -1].append(node)
    for (base, dim), taken in found.items():
        if {0, 1, 2} <= set(taken):
            length = val(base).shape[dim]
            yield Cut(base, dim, length, length, tuple(n for nodes in taken.values() for n in nodes))


def _into_chunks(graph: Graph) -> Iterator[Cut]:
    """Values whose tokens are laid out as chunks, with places added at the end where they do not fill them."""
    whole = list(_chunked(graph))
    lengths = {padded for _, _, padded in whole}
    for node in graph.nodes:
        if node.target in _PADS and (found := _padded(node)) and found[1] in lengths:
            yield Cut(node.args[0], found[0], val(node.args[0]).shape[found[0]], found[1], (node,))
    for node, dim, padded in whole:
        yield Cut(node.args[0], dim, padded, padded, (node,))  # type: ignore[arg-type]


def _chunked(graph: Graph) -> Iterator[tuple[Node, int, int]]:
    """Reshapes that lay a dim out as two, the dim, and its size, if sums run along the second of them somewhere in the graph."""
    sums = [n for n in graph.find_nodes(op="call_function", target=aten.cumsum.default) if val(n).is_floating_point() and val(n).ndim]
    summed = {size for n in sums if isinstance(size := val(n).shape[n.args[1]], int)}  # type: ignore[index]
    for node in graph.find_nodes(op="call_function", target=aten.reshape.default) if summed else ():
        before, after = val(node.args[0]).shape, val(node).shape
        for dim, size in enumerate(before if len(after) == len(before) + 1 else ()):
            chunk, others = after[dim + 1], zip((*before[:dim], *before[dim + 1 :]), (*after[:dim], *after[dim + 2 :]), strict=True)
            if isinstance(size, int) and isinstance(chunk, int) and chunk in summed and all(same_size(a, b) for a, b in others):
                yield node, dim, size
                break


def _padded(node: Node) -> tuple[int, int] | None:
    """The only dim that is padded, at its end and with zeros, and its size then."""
    given: dict[str, Any] = arguments(node)
    x: Tensor = val(given["self"])
    pad = list(given["pad"])
    if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0, 0.0) or not all(isinstance(p, int) for p in pad):
        return None
    ends = [(x.ndim - 1 - i // 2, p) for i, p in enumerate(pad) if i % 2 and p > 0]
    if len(ends) != 1 or any(pad[::2]) or not isinstance(x.shape[ends[0][0]], int):
        return None
    dim, more = ends[0]
    return dim, x.shape[dim] + more
