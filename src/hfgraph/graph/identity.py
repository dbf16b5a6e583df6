"""Which nodes are one tensor object, and who can tell: a caller that gets it, and operators that reshape it in place."""

from __future__ import annotations

from functools import cache

import torch
from torch._ops import OpOverload
from torch.fx import Node


def may_be_one(view: Node, whole: Node) -> bool:
    """Nobody can tell whether a view of the whole is a tensor of its own or the one that it views.

    A caller can who gets both: `view.unsqueeze_(0)` would reshape the other as well. So can whoever reads one after such an
    operator has reshaped the other in the graph.
    """
    one, other = _object(view), _object(whole)
    return not any(_reshapes(n) for n in (*one, *other)) and not (_is_seen(one) and _is_seen(other))


def _object(node: Node) -> list[Node]:
    """The nodes whose value is one tensor: in-place operators return what they write."""
    while _is_in_place(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    found = [node]
    for member in found:  # grows while it is read
        found += [u for u in member.users if _is_in_place(u) and u.args[0] is member]
    return found


def _is_in_place(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and bool(node.args) and _returns_self(node.target)


@cache
def _returns_self(target: OpOverload) -> bool:
    """The operator returns the tensor that it writes, its first argument."""
    first, returned = target._schema.arguments[:1], target._schema.returns
    return len(returned) == 1 and all(a.alias_info is not None and a.alias_info.is_write for a in (*first, *returned))


def _reshapes(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and torch.Tag.inplace_view in node.target.tags


def _is_seen(members: list[Node]) -> bool:
    """The object comes from outside or goes there."""
    return any(n.op in ("placeholder", "get_attr") or any(u.op == "output" for u in n.users) for n in members)
