"""One spelling for what ATen can say in several ways, and no-ops that say nothing.

A table maps an operator to a function of its node that returns what to put in its place: an existing node, a
`Call`, or None to leave it. Adding a spelling is adding a line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from hfgraph.graph.alias import stand_for
from hfgraph.graph.identity import may_be_one
from hfgraph.graph.values import arguments, autocast_is_on, is_dense, is_symbol, regions, same_layout, same_size, val

aten = torch.ops.aten
END = 9223372036854775807


class Call(NamedTuple):
    """An operator call to put in a node's place; `kwargs` are left empty by all present spellings.

    Attributes:
        at: an operand that becomes the call instead, where the operand stands: what it reads may be written before the node.
    """

    target: Any
    args: tuple[Any, ...]
    at: Node | None = None


Spelling = Callable[[Node], "Node | Call | None"]
Modes = dict[Node, tuple[Any, ...]]


# --- dims count from the end, so that one pattern fits every rank -------------------------------------


def _from_end(name: str) -> Spelling:
    def spell(node: Node) -> Call | None:
        given = arguments(node)
        x, dims = given["self"], given[name]
        if not isinstance(x, Node) or not isinstance(val(x), Tensor):
            return None
        rank = val(x).ndim
        many = isinstance(dims, Sequence)
        if dims is None or rank == 0 or not all(isinstance(d, int) for d in (dims if many else [dims])):
            return None
        moved = [d - rank if d >= 0 else d for d in (dims if many else [dims])]
        given[name] = moved if many else moved[0]
        return _unless_same(node, given)

    return spell


def _unless_same(node: Node, given: dict[str, Any]) -> Call | None:
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    if any(a.kwarg_only and given[a.name] != (a.default_value if a.has_default_value() else None) for a in schema):
        return None
    args = [given[a.name] for a in schema if not a.kwarg_only]
    positional = [a for a in schema if not a.kwarg_only]
    while args and positional[len(args) - 1].has_default_value() and _equal(args[-1], positional[len(args) - 1].default_value):
        args.pop()
    return None if _equal(list(node.args), args) and not node.kwargs else Call(node.target, tuple(args))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return a is b or (not isinstance(a, Node) and not isinstance(b, Node) and type(a) is type(b) and bool(a == b))


# --- casts --------------------------------------------------------------------------------------------


def _cast(node: Node) -> Node | Call | None:
    """`to` in all overloads and `type_as`: nothing where nothing changes, `to.dtype` where only the dtype does."""
    x, out = node.args[0], val(node)
    if not isinstance(x, Node) or not isinstance(val(x), Tensor):
        return None
    given = arguments(node)
    if given.get("copy") or given.get("memory_format") not in (None, torch.preserve_format) or given.get("pin_memory"):
        return None
    source = val(x)
    if source.device != out.device or source.layout != out.layout:
        return None
    if source.dtype == out.dtype:
        return x
    plain = Call(aten.to.dtype, (x, out.dtype))
    return None if node.target is aten.to.dtype and len(node.args) == 2 and not node.kwargs else plain


# --- views --------------------------------------------------------------------------------------------


def _same_view(node: Node) -> Node | None:
    """A view of the whole, as it is."""
    x = node.args[0]
    return x if isinstance(x, Node) and isinstance(val(x), Tensor) and same_layout(val(x), val(node)) else None


def _reshape(node: Node) -> Node | Call | None:
    """view, flatten, unflatten and reshape are one operator; sizes are taken from the result where they are numbers."""
    same = _same_view(node)
    if same is not None:
        return same
    if node.target in (aten.reshape.default, aten.view.default):
        return None if node.target is aten.reshape.default else Call(aten.reshape.default, tuple(node.args[:2]))
    shape = list(val(node).shape)
    return None if any(is_symbol(s) for s in shape) else Call(aten.reshape.default, (node.args[0], shape))


def _expand_as(node: Node) -> Node | Call | None:
    """By the sizes themselves where they are numbers: then nothing hangs on what they were taken from."""
    same, shape = _same_view(node), list(val(node).shape)
    return same if same is not None else None if any(is_symbol(s) for s in shape) else Call(aten.expand.default, (node.args[0], shape))


def _permute(order: Callable[[Node, int], list[int]]) -> Spelling:
    def spell(node: Node) -> Call | None:
        x = node.args[0]
        if not isinstance(x, Node) or val(x).ndim < 2:
            return None
        rank = val(x).ndim
        dims = [d % rank for d in order(node, rank)]
        return None if node.target is aten.permute.default and list(node.args[1]) == dims else Call(aten.permute.default, (x, dims))  # type: ignore[arg-type]

    return spell


def _swapped(node: Node, rank: int) -> list[int]:
    dims = list(range(rank))
    a, b = node.args[1], node.args[2]
    assert isinstance(a, int) and isinstance(b, int)
    dims[a], dims[b] = dims[b], dims[a]
    return dims


def _slice(node: Node) -> Node | Call | None:
    """A slice of everything is nothing."""
    given = arguments(node)
    x, dim, start, end, step = (given[k] for k in ("self", "dim", "start", "end", "step"))
    rank = val(x).ndim
    if start in (None, 0) and step == 1 and (end is None or same_size(end, END) or _reaches(end, val(x).shape[dim])):
        return x
    if isinstance(dim, int) and dim >= 0:
        return Call(node.target, (x, dim - rank, *node.args[2:]))
    return None


def _reaches(end: Any, size: Any) -> bool:
    return not isinstance(end, Node) and (same_size(end, size) or (isinstance(end, int) and isinstance(size, int) and end >= size))


_REDUCTIONS = frozenset({aten.mean.dim, aten.sum.dim_IntList, aten.amax.default})


def _unsqueeze(node: Node) -> Call | None:
    """Dims count from the end; a reduction over the last dim that gets it back is one with keepdim, in its place."""
    x, dim = node.args[0], node.args[1]
    if not isinstance(x, Node) or not isinstance(dim, int):
        return None
    if dim >= 0:
        return Call(node.target, (x, dim - val(node).ndim))
    if dim == -1 and x.target in _REDUCTIONS and len(x.users) == 1 and not x.kwargs and list(x.args[1:]) == [[-1]]:  # type: ignore[comparison-overlap]
        return Call(x.target, (x.args[0], [-1], True), at=x)
    return None


# --- arithmetic ---------------------------------------------------------------------------------------


def _square(node: Node) -> Call | None:
    """square(x), x * x and pow(x, 2.0) of floats round alike."""
    if not isinstance(node.args[0], Node) or not val(node.args[0]).is_floating_point():
        return None
    if node.target is aten.pow.Tensor_Scalar:
        return Call(node.target, (node.args[0], 2)) if node.args[1] == 2 and not isinstance(node.args[1], int) else _inverse_root(node)
    if node.target is aten.mul.Tensor and node.args[0] is not node.args[1]:
        return None
    return Call(aten.pow.Tensor_Scalar, (node.args[0], 2))


def _inverse_root(node: Node) -> Call | None:
    """ATen computes pow(x, -0.5) as rsqrt in float32 and float64; in half precision they round differently."""
    x = node.args[0]
    assert isinstance(x, Node)
    return Call(aten.rsqrt.default, (x,)) if node.args[1] == -0.5 and val(x).dtype in (torch.float32, torch.float64) else None


def _contiguous(node: Node) -> Node | None:
    x = node.args[0]
    dense = arguments(node).get("memory_format") in (None, torch.contiguous_format)
    return x if isinstance(x, Node) and dense and is_dense(val(x)) else None


def _inactive_dropout(node: Node) -> Node | None:
    x, p, train = (arguments(node)[k] for k in ("input", "p", "train"))
    return x if train is False or p == 0 else None


def _renamed(target: Any) -> Spelling:
    return lambda node: None if node.kwargs else Call(target, tuple(node.args))


SPELLINGS: dict[Any, Spelling] = {
    aten.to.dtype: _cast,
    aten.to.dtype_layout: _cast,
    aten.to.device: _cast,
    aten.to.other: _cast,
    aten.type_as.default: _cast,
    aten.alias.default: lambda node: node.args[0],  # type: ignore[return-value]
    aten.view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.flatten.using_ints: _reshape,
    aten.unflatten.int: _reshape,
    aten.view_as.default: _reshape,
    aten.reshape_as.default: _reshape,
    aten.expand.default: _same_view,
    aten.expand_as.default: _expand_as,
    aten.slice.Tensor: _slice,
    aten.unsqueeze.default: _unsqueeze,
    aten.transpose.int: _permute(_swapped),
    aten.swapaxes.default: _permute(_swapped),
    aten.t.default: _permute(lambda _, rank: list(reversed(range(rank)))),
    aten.numpy_T.default: _permute(lambda _, rank: list(reversed(range(rank)))),
    aten.permute.default: _permute(lambda node, _: list(node.args[1])),  # type: ignore[arg-type]
    aten.square.default: _square,
    aten.mul.Tensor: _square,
    aten.pow.Tensor_Scalar: _square,
    aten.multiply.Tensor: _renamed(aten.mul.Tensor),
    aten.max.other: _renamed(aten.maximum.default),
    aten.min.other: _renamed(aten.minimum.default),
    aten.concatenate.default: _renamed(aten.cat.default),
    aten.concat.default: _renamed(aten.cat.default),
    aten.contiguous.default: _contiguous,
    aten.dropout.default: _inactive_dropout,
    aten.mean.dim: _from_end("dim"),
    aten.sum.dim_IntList: _from_end("dim"),
    aten.amax.default: _from_end("dim"),
    aten.softmax.int: _from_end("dim"),
    aten.select.int: _from_end("dim"),
    aten.chunk.default: _from_end("dim"),
    aten.split.Tensor: _from_end("dim"),
    aten.split_with_sizes.default: _from_end("dim"),
}


# Where these do nothing, they return their input itself; the others return a new tensor on the same storage.
_RETURN_SELF = frozenset(
    {aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.type_as.default, aten.flatten.using_ints, aten.contiguous.default,
     aten.dropout.default}
)  # fmt: skip
# Autocast runs these in float32 (on some devices), and what they are put in place of as it is.
_WIDENED = frozenset({aten.pow.Tensor_Scalar})


def _spelled(node: Node, modes: Modes) -> Node | Call | None:
    """What the table puts in a node's place, where nobody can tell."""
    spelling = SPELLINGS.get(node.target) if node.op == "call_function" else None
    found = spelling(node) if spelling and isinstance(val(node), Tensor | list | tuple) else None
    return found if found is not None and _is_allowed(found, node, modes) else None


def _is_allowed(found: Node | Call, node: Node, modes: Modes) -> bool:
    """A new tensor made under no_grad has no history, its input may have one; both may be seen; and autocast may tell operators apart."""
    if isinstance(found, Node):
        return node.target in _RETURN_SELF or (modes[found] == modes[node] and may_be_one(node, found))
    if found.at is not None and modes[found.at] != modes[node]:
        return False
    widened = found.target in _WIDENED and node.target not in _WIDENED and val(node).dtype not in (torch.float32, torch.float64)
    return not (widened and autocast_is_on(modes[node]))


def unspelled(gm: GraphModule) -> Node | None:
    """A node that the table would still change; None in a canonical graph."""
    modes = regions(gm.graph)
    return next((n for n in gm.graph.nodes if _spelled(n, modes) is not None), None)


def respell(gm: GraphModule) -> int:
    """Apply the table to every node, in place. Returns how many nodes changed."""
    changed = 0
    modes = regions(gm.graph)
    for node in list(gm.graph.nodes):
        found = _spelled(node, modes)
        changed += found is not None
        while isinstance(found, Call):  # flatten to reshape, and then a reshape to the same shape to nothing
            place = found.at or node
            place.target, place.args, place.kwargs = found.target, found.args, {}
            place.meta["val"] = val(node)
            found = _spelled(node, modes) if place is node else place
        if found is not None:
            stand_for(found, node)
            gm.graph.erase_node(node)
    return changed
