"""Where parameters lie in memory: what may be moved next to each other, without anyone noticing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hfgraph.graph.mapped import is_of_a_file

MEMORY = "hfgraph_memory"  # meta key of a placeholder that holds a plain parameter
STACK = "hfgraph_stack"  # meta key of a node that stacks parameters: in memory they are to lie like that


class Memory(NamedTuple):
    """Numbers only: a graph that kept a parameter would keep its memory.

    Attributes:
        storage: identity of the storage; `tensors` says how many tensors lie in it.
        start, size: the parameter's own bytes in it.
        trained: it requires gradients.
        bound: why it cannot move, whatever torch itself holds of it; empty where it can.
    """

    storage: int
    tensors: int
    start: int
    size: int
    trained: bool
    bound: str = ""


def memory(value: Any) -> Memory | None:
    """Of a plain, contiguous parameter. None for all else: tensors that others make, subclasses, inference tensors."""
    if type(value) is not nn.Parameter or value.layout is not torch.strided or not value.is_contiguous() or value.is_inference():
        return None
    storage = value.untyped_storage()
    tensors = torch._C._storage_Use_Count(storage._cdata) - 1  # `storage` itself is one
    size = value.element_size()
    return Memory(storage._cdata, tensors, int(value.storage_offset()) * size, value.numel() * size, value.requires_grad, _bound(value))


def _bound(value: Tensor) -> str:
    """Why a parameter has to stay where it lies: who else sees that memory does not show in how many tensors lie in it."""
    storage = value.untyped_storage()
    if value.device.type == "cpu" and storage.is_shared():  # of memory on a GPU torch always says that it is shared
        return "other processes share its memory and would not follow"
    if value.is_pinned():
        return "its memory is pinned, and a new block would not be"
    # Arrays, DLPack, memory of another process on a GPU: torch was handed it, and only what it allocates itself it can resize.
    if storage.resizable() or is_of_a_file(value.data_ptr()):
        return ""
    return "its memory is an array's, not torch's own (weight.data = weight.data.clone() gives it some)"


def are_adjacent(parts: Sequence[Memory]) -> bool:
    """They are one block, in this order."""
    return all(b.storage == a.storage and b.start == a.start + a.size for a, b in pairwise(parts))


def ordered(parts: Sequence[Memory]) -> list[int]:
    """Positions in the order of memory, if all lie in one storage: what was stacked once stays as it is."""
    together = len({p.storage for p in parts}) == 1
    return sorted(range(len(parts)), key=lambda i: parts[i].start) if together else list(range(len(parts)))


def obstacle(parts: Sequence[Memory]) -> str | None:
    """Why these cannot become one block: someone else sees their memory, and would go on seeing the old one."""
    if are_adjacent(parts):
        return None
    if bound := next((p.bound for p in parts if p.bound), ""):
        return bound
    for storage in {p.storage for p in parts}:
        inside = [p for p in parts if p.storage == storage]
        if inside[0].tensors != len(inside):
            return "other tensors share its memory and would not follow"
    return None
