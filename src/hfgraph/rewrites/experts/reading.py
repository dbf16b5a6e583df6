"""What all forms of a mixture share: the activation between its two products, and how a reason to leave it alone is carried out."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from hfgraph.graph.recogniser import View
from hfgraph.graph.unify import label
from hfgraph.graph.values import arguments, same_size, val
from hfgraph.kernels.glu import glu

aten = torch.ops.aten
_SPLITS = frozenset({aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default})
# Attributes that `moe` takes over from `glu`.
_OF_GLU = ("activation", "alpha", "gate_max", "act_max", "up_min", "up_max", "up_offset")


class Unlike(Exception):
    """A mixture is left alone: why, in words, and the first node that differs."""

    def __init__(self, reason: str, at: Node) -> None:
        super().__init__(reason)
        self.reason, self.at = reason, at


@dataclass(frozen=True, eq=False)
class Activation:
    """What happens between the two products: `source` is what it is of, `named` the attributes of the op."""

    source: Node
    named: Mapping[str, Any]
    nodes: tuple[Node, ...]


def read_activation(node: Node, inner: Any) -> Activation:
    """The activation that ends in `node`, `inner` wide. Raises Unlike."""
    if node.target is glu.target:
        return _gated(node, inner)
    if node.target is aten.silu.default:
        return Activation(node.args[0], {"activation": "silu"}, (node,))  # type: ignore[arg-type]
    if node.target is aten.gelu.default:
        name = "gelu_tanh" if arguments(node)["approximate"] == "tanh" else "gelu"
        return Activation(node.args[0], {"activation": name}, (node,))  # type: ignore[arg-type]
    before = node.args[0] if node.args else None
    if node.target is aten.pow.Tensor_Scalar and node.args[1] == 2 and isinstance(before, Node) and before.target is aten.relu.default:
        return Activation(before.args[0], {"activation": "relu2"}, (node, before))  # type: ignore[arg-type]
    raise Unlike(f"{label(node)} stands between the experts' products, and is no activation that is known", node)


def _gated(node: Node, inner: Any) -> Activation:
    given = glu.bind(node.args, node.kwargs)
    if given["compute_dtype"] is not None or given["out_dtype"] is not None:
        raise Unlike("the gate is computed in another dtype than the products", node)
    gate, up = _piece(given["gate"]), _piece(given["up"])
    if gate is None or up is None or gate[0] is not up[0]:
        raise Unlike("gate and up are not two pieces of one product", node)
    source, placed = gate[0], (gate[1:3], up[1:3])
    if not all(same_size(val(n).shape[-1], inner) for n in (given["gate"], given["up"])) or not same_size(val(source).shape[-1], 2 * inner):
        raise Unlike("gate and up are not the two halves of a product", node)
    if placed not in (((0, 1), (inner, 1)), ((0, 2), (1, 2))):
        raise Unlike("gates are neither the first half of a product nor every other column of it", node)
    defaults = {n: p.default for n, p in glu.signature.parameters.items()}
    named = {n: given[n] for n in _OF_GLU if given[n] != defaults[n]}
    return Activation(source, named | ({"interleaved": 1} if placed[0][1] == 2 else {}), (node, *gate[3], *up[3]))


def _piece(node: Node) -> tuple[Node, int, int, tuple[Node, ...]] | None:
    """What a value is a piece of along the last dim, where it starts, in which steps, and the nodes that take it."""
    if node.target is aten.slice.Tensor:
        given = arguments(node)
        start = given["start"] or 0
        last = given["dim"] in (-1, val(node).ndim - 1)
        return (given["self"], start, given["step"], (node,)) if last and isinstance(start, int) and start >= 0 else None
    parts = node.args[0] if node.target is operator.getitem else None
    if not isinstance(parts, Node) or parts.target not in _SPLITS or arguments(parts)["dim"] not in (-1, val(node).ndim - 1):
        return None
    start = sum(p.shape[-1] for p in val(parts)[: node.args[1]])  # type: ignore[misc]
    return parts.args[0], start, 1, (node, parts)  # type: ignore[return-value]


def behind_cast(node: Any) -> Any:
    """What a cast is of; the value itself where it is none."""
    return node.args[0] if isinstance(node, Node) and node.target is aten.to.dtype else node


def index_of(node: Any) -> tuple[Node, Node] | None:
    """Of `x[ids]`, x and ids."""
    if not isinstance(node, Node) or node.target is not aten.index.Tensor:
        return None
    x, ids = node.args[0], node.args[1]
    single = isinstance(ids, list | tuple) and len(ids) == 1 and isinstance(ids[0], Node)
    return (x, ids[0]) if single and not val(ids[0]).is_floating_point() and val(ids[0]).dtype is not torch.bool else None  # type: ignore[index,return-value]


def upright(matrix: Node, turned: bool, view: View, before: Node) -> Node:
    """(E, out, in): a product's matrices as the op takes them."""
    return view.call(aten.permute.default, matrix, [0, 2, 1], before=before) if turned else matrix


def unturned(node: Node) -> tuple[Node, bool]:
    """The right operand (E, in, out) of a product as the matrices it is a view of, and whether those are not (E, out, in) yet."""
    if node.target is aten.permute.default and list(node.args[1]) == [0, 2, 1]:  # type: ignore[arg-type]
        return node.args[0], False  # type: ignore[return-value]
    return node, True


def user_of(node: Node, *targets: Any) -> Node | None:
    """The user that is a call of one of the operators; others are for the rewriter to find."""
    return next((u for u in node.users if u.target in targets), None)


def folded(flat: Node, choices: int, view: View, before: Node) -> Node:
    """(T * K,) or (T * K, 1) as (T, K): what it was before it was laid flat, where that can be seen."""
    source: Any = flat
    while source.target is aten.reshape.default or (source.target is aten.unsqueeze.default and val(source).ndim == 2):
        source = source.args[0]
        if val(source).ndim == 2:
            break
    if val(source).ndim == 2 and same_size(val(source).shape[1], choices):
        return source
    return view.call(aten.reshape.default, flat, [-1, choices], before=before)
