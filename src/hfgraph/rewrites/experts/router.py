"""What a router does, in the field's words, as far as it is seen in the graph. Where an operator is not known, the words end."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from hfgraph.graph.values import arguments, val
from hfgraph.kernels.glu import glu

aten = torch.ops.aten
_MOVES = frozenset(
    {aten.to.dtype, aten.reshape.default, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim, aten.contiguous.default, aten.clone.default}
)
_SCORES: dict[Any, str] = {aten.softmax.int: "softmax", aten.sigmoid.default: "sigmoid", aten.softplus.default: "softplus"}
_MASKS = frozenset({aten.masked_fill.Scalar, aten.where.self, aten.where.ScalarOther, aten.mul.Tensor})
_MOST = 24


def described(ids: Node, weights: Node, experts: int, choices: int) -> str:
    """For example "8 experts, top-2, softmax before top-k, renormalised, scaled by 2.5"."""
    chosen = _unmoved(ids)
    top = chosen.args[0] if chosen.target is operator.getitem and chosen.args[1] == 1 else None
    if not isinstance(top, Node) or top.target is not aten.topk.default:
        return f"{experts} experts, {choices} for each token"
    return ", ".join((f"{experts} experts, top-{choices}", *_before(top), *_after(weights, top)))


def _unmoved(node: Node) -> Node:
    while node.target in _MOVES:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _before(top: Node) -> list[str]:
    """What made the numbers that the largest are taken of."""
    words: list[str] = []
    node = _unmoved(top.args[0])  # type: ignore[arg-type]
    for _ in range(_MOST):
        if node.target in _SCORES:
            return [f"{_SCORES[node.target]} before top-k", *words]
        if node.target is aten.sqrt.default and _unmoved(node.args[0]).target is aten.softplus.default:  # type: ignore[arg-type]
            return ["sqrt(softplus) before top-k", *words]
        step = _step_before(node)
        if step is None:
            return words
        word, node = step
        words.insert(0, word)
        node = _unmoved(node)
    return words


def _step_before(node: Node) -> tuple[str, Node] | None:
    if node.target is aten.add.Tensor and all(isinstance(a, Node) for a in node.args[:2]):
        given = [_unmoved(a).op in ("placeholder", "get_attr") for a in node.args[:2]]  # type: ignore[arg-type]
        return ("correction bias", node.args[given.index(False)]) if given.count(True) == 1 else None  # type: ignore[return-value]
    if node.target in _MASKS:
        mask = next((a for a in node.args if isinstance(a, Node) and _reaches_top(a)), None)
        kept = next((a for a in node.args if isinstance(a, Node) and a is not mask and val(a).is_floating_point() and val(a).numel() != 1), None)
        return ("groups", kept) if mask is not None and kept is not None else None
    return None


def _reaches_top(mask: Node) -> bool:
    """It is made of indices that another top-k gave, scattered: the groups that take part."""
    stack, seen = [mask], set[Node]()
    while stack and len(seen) < _MOST:
        node = stack.pop()
        if node in seen or (val(node) is not None and not hasattr(val(node), "dtype") and node.target is not operator.getitem):
            continue
        seen.add(node)
        if node.target is operator.getitem and node.args[1] == 1 and getattr(node.args[0], "target", None) is aten.topk.default:
            return True
        if node.target in _MOVES or node.target in _SPREADS:
            stack += node.all_input_nodes
    return False


_SPREADS = frozenset(
    {aten.scatter.value, aten.scatter.src, aten.scatter_.value, aten.expand.default, aten.logical_not.default, aten.bitwise_not.default, aten.eq.Scalar,
     aten.repeat_interleave.self_int}
)  # fmt: skip


def _after(weights: Node, top: Node) -> list[str]:
    """What becomes of the numbers of those that were chosen."""
    words: list[str] = []
    node: Any = _unmoved(weights)
    for _ in range(_MOST):
        if not isinstance(node, Node) or node.target in (aten.gather.default, operator.getitem):
            break
        if node.target in (aten.mul.Tensor, aten.mul_.Tensor) and isinstance(node.args[1], int | float):
            words.insert(0, f"scaled by {node.args[1]:g}")
        elif node.target in (aten.div.Tensor, aten.div_.Tensor) and _is_own_sum(node.args[1], node.args[0]):
            words.insert(0, "renormalised")
        elif node.target in _SCORES and top < node:
            words.insert(0, f"{_SCORES[node.target]} after top-k")
        else:
            break
        node = _unmoved(node.args[0])  # type: ignore[arg-type]
    return words


def _is_own_sum(total: Any, of: Any) -> bool:
    """The sum of `of` over the choices, perhaps kept from being zero."""
    for _ in range(3):
        if not isinstance(total, Node):
            return False
        if total.target is aten.sum.dim_IntList:
            return total.args[0] is of and arguments(total)["dim"] in ([-1], [1])
        if total.target not in (aten.add.Tensor, aten.clamp.default, aten.clamp_min.default) or isinstance(total.args[1], Node):
            return False
        total = total.args[0]
    return False


def shared_expert(out: Node, x: Node) -> str:
    """ ", shared expert" where the result meets that of a gated MLP which all tokens take."""
    source, current = _unmoved(x), out
    for _ in range(3):
        for user in current.users:
            if user.target is aten.add.Tensor and any(a is not current and isinstance(a, Node) and _is_mlp_of(a, source) for a in user.args):
                return ", shared expert"
        following = next((u for u in current.users if u.target in _MOVES or u.target is aten.mul.Tensor), None)
        if following is None:
            break
        current = following
    return ""


def _is_mlp_of(node: Node, source: Node) -> bool:
    """A linear of a gated product of linears of `source`, perhaps times a gate of its own."""
    node = _unmoved(node)
    if node.target is aten.mul.Tensor:
        node = next((m for a in node.args if isinstance(a, Node) and (m := _unmoved(a)).target is aten.linear.default), node)
    gated = _unmoved(node.args[0]) if node.target is aten.linear.default else node  # type: ignore[arg-type]
    if gated.target is not glu.target:
        return False
    made = [_unmoved(p) for n in gated.all_input_nodes for p in [_unmoved(n)]]
    return any(p.target is aten.linear.default and _unmoved(p.args[0]) is source for p in map(_of_piece, made))  # type: ignore[arg-type]


def _of_piece(node: Node) -> Node:
    return node.args[0].args[0] if node.target is operator.getitem else node  # type: ignore[union-attr,return-value]
