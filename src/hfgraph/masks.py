"""Masks that attentions share are made once for all of them, not once for each layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from hfgraph.graph.alias import Aliases
from hfgraph.graph.inline import inline
from hfgraph.graph.op import OPS
from hfgraph.graph.values import regions, val
from hfgraph.kernels.attention import is_spelled, needs_table, scores_to_add
from hfgraph.kernels.attention.masking import allowed_keys, is_full

Given = Mapping[str, Any]
_OF_MASKS = ("mask", "segments", "start", "left", "right", "chunk", "offset")


class Table(Enum):
    """Tensors that stand for several arguments of an attention: which these are, how it is made of them, and the argument that it becomes."""

    ALLOWED = _OF_MASKS, allowed_keys, "mask"
    ADDED = (*_OF_MASKS, "bias", "slopes", "masked"), scores_to_add, "bias"

    def __init__(self, names: tuple[str, ...], build: Callable[..., Tensor | None], stands_for: str) -> None:
        self.names, self.build, self.stands_for = names, build, stands_for


def share_masks(gm: GraphModule) -> int:
    """Give attentions that no kernel has taken, and whose reference needs their mask as a tensor, one tensor for all that have
    the same. Returns how many are made."""
    modes, aliases = regions(gm.graph), Aliases(gm.graph)
    groups: dict[Any, list[tuple[Node, Given]]] = defaultdict(list)
    for node in gm.graph.nodes:
        if node.target is OPS["attention"].target:
            given = OPS["attention"].bind(node.args, node.kwargs)
            table = _needed({n: val(a) if isinstance(a, Node) else a for n, a in given.items()})
            if table:
                written = any(isinstance(given[n], Node) and aliases.is_written(given[n]) for n in table.names)
                groups[(table, node if written else _key(given, table, modes[node]))].append((node, given))
    for (table, _), members in groups.items():
        _share(members, table)
    return len(groups)


def _needed(given: Given) -> Table | None:
    """A tensor of the mask, or of scores to add; None where neither is needed."""
    if not is_spelled(given["sinks"], given["softcap"], given["masked"]):
        return Table.ADDED if needs_table(**given) else None
    position = is_full(given["q"], given["left"], given["right"], given["chunk"], given["offset"])
    return None if position and given["segments"] is None and given["start"] is None else Table.ALLOWED


def _key(given: Given, table: Table, mode: Any) -> Any:
    """What attentions with one table have in common."""
    q, k = val(given["q"]), val(given["k"])
    sizes = (str(q.shape[-2]), str(k.shape[-2]), str(q.shape[-3]) if given["slopes"] else "", q.ndim)
    return (mode, q.dtype, q.device, sizes, *(a if isinstance(a := given[n], Node) else str(a) for n in table.names))


def _share(members: list[tuple[Node, Given]], table: Table) -> None:
    first, given = members[0]
    tensors = [n for n in ("q", "k", *table.names) if isinstance(given[n], Node)]
    numbers = {n: given[n] for n in table.names if n not in tensors}

    def made(*values: Tensor) -> Tensor:
        found = table.build(**dict(zip(tensors, values, strict=True)), **numbers)
        assert found is not None
        return found

    shared = inline(made, [given[n] for n in tensors], first)
    for node, own in members:
        kept = {n: a for n, a in own.items() if n not in table.names and a is not None}
        node.args, node.kwargs = (), {**kept, table.stands_for: shared}
