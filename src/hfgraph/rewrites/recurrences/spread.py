"""Along which dims a value is the same by the way it is made: it was spread over them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from hfgraph.graph.values import arguments, same_size, val

aten = torch.ops.aten
# What computes each element from those at its place alone, of operands that are spread over one another.
_BY_ELEMENT = frozenset(
    {aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.neg.default, aten.exp.default, aten.softplus.default, aten.sigmoid.default,
     aten.clamp.default, aten.to.dtype, aten.clone.default, aten.contiguous.default}
)  # fmt: skip
_STEPS = 10  # that a value is looked back for


def same_along(node: Node, steps: int = _STEPS) -> frozenset[int]:
    """The dims, counted from the end, along which all elements are the same, as far as the last steps of how it is made say."""
    value = val(node)
    if not isinstance(value, Tensor):
        return frozenset()
    own = frozenset(d - value.ndim for d, size in enumerate(value.shape) if same_size(size, 1))
    if steps == 0:
        return own
    if node.target is aten.expand.default:
        return own | _of_operand(arguments(node)["self"], value.ndim, steps)
    if node.target is aten.unsqueeze.default:
        given = arguments(node)
        at = given["dim"] % value.ndim - value.ndim
        return own | {d if d > at else d - 1 for d in same_along(given["self"], steps - 1)}
    if node.target in _BY_ELEMENT:
        return own | frozenset.intersection(*(_of_operand(i, value.ndim, steps) for i in node.all_input_nodes if isinstance(val(i), Tensor)))
    return own


def _of_operand(node: Node, ndim: int, steps: int) -> frozenset[int]:
    """The dims of a result along which an operand that is spread over it changes nothing."""
    return same_along(node, steps - 1) | frozenset(range(-ndim, -val(node).ndim))


def factors(node: Node) -> tuple[Node, ...]:
    """The two operands of a product, if each is the same along a dim along which the product is not: so an outer product is made."""
    if node.target is not aten.mul.Tensor or len(node.all_input_nodes) != 2:
        return ()
    own, ndim = same_along(node), val(node).ndim
    found = tuple(i for i in node.all_input_nodes if isinstance(val(i), Tensor) and _of_operand(i, ndim, _STEPS) > own)
    return found if len(found) == 2 else ()
