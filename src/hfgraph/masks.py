"""Masks that attentions share are made once for all of them, not once for each layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
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
_ALLOWED = ("mask", "segments", "start", "left", "right", "chunk", "offset")
_ADDED = (*_ALLOWED, "bias", "slopes", "masked")


def share_masks(gm: GraphModule) -> int:
    """Give attentions that no kernel has taken, and whose reference needs their mask as a tensor, one tensor for all that have
    the same. Returns how many are made."""
    modes, aliases = regions(gm.graph), Aliases(gm.graph)
    groups: dict[Any, list[tuple[Node, Given]]] = defaultdict(list)
    for node in gm.graph.nodes:
        if node.target is OPS["attention"].target:
            given = OPS["attention"].bind(node.args, node.kwargs)
            names = _tabulated({n: val(a) if isinstance(a, Node) else a for n, a in given.items()})
            if names:
                written = any(isinstance(given[n], Node) and aliases.is_written(given[n]) for n in names)
                groups[(names, node if written else _key(given, names, modes[node]))].append((node, given))
    for (names, _), members in groups.items():
        _share(members, names)
    return len(groups)


def _tabulated(given: Given) -> tuple[str, ...]:
    """The arguments that become one tensor: those of a mask, or also those of scores to add; none where no tensor is needed."""
    if not is_spelled(given["sinks"], given["softcap"], given["masked"]):
        return _ADDED if needs_table(**given) else ()
    position = is_full(given["q"], given["left"], given["right"], given["chunk"], given["offset"])
    return () if position and given["segments"] is None and given["start"] is None else _ALLOWED


def _key(given: Given, names: tuple[str, ...], mode: Any) -> Any:
    """What attentions with one table have in common."""
    q, k = val(given["q"]), val(given["k"])
    sizes = (str(q.shape[-2]), str(k.shape[-2]), str(q.shape[-3]) if given["slopes"] else "", q.ndim)
    return (mode, q.dtype, q.device, sizes, *(a if isinstance(a := given[n], Node) else str(a) for n in names))


def _share(members: list[tuple[Node, Given]], names: tuple[str, ...]) -> None:
    first, given = members[0]
    tensors = [n for n in ("q", "k", *names) if isinstance(given[n], Node)]
    numbers = {n: given[n] for n in names if n not in tensors}
    build, stands_for = (scores_to_add, "bias") if names is _ADDED else (allowed_keys, "mask")

    def table(*values: Tensor) -> Tensor:
        made = build(**dict(zip(tensors, values, strict=True)), **numbers)
        assert made is not None
        return made

    shared = inline(table, [given[n] for n in tensors], first)
    for node, own in members:
        kept = {n: a for n, a in own.items() if n not in names and a is not None}
        node.args, node.kwargs = (), {**kept, stands_for: shared}
