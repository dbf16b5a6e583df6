"""Linears that read one tensor."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from torch import Tensor, nn

from hfgraph.zoo.expected.watch import Counts, Watch

# A router or a gate of a few columns is not worth merging.
_FEW = 8


class Siblings(Watch):
    """Counts tensors that several linears read, at the module that all these are in."""

    def __init__(self, counts: Counts) -> None:
        super().__init__(counts)
        self.readers: dict[Any, dict[int, str]] = {}

    def see(self, name: str, args: Any, kwargs: Any, ins: list[Tensor], outs: list[Tensor]) -> None:
        if name == "linear" and isinstance(ins[1], nn.Parameter) and len(ins[1]) >= _FEW:
            alike = id(ins[0]), ins[1].dtype, len(ins) > 2
            self.readers.setdefault(alike, {})[id(ins[1])] = self.counts.places.here

    def __exit__(self, *given: Any) -> None:
        super().__exit__(*given)
        self.counts.found["merged"].update(_common(list(group.values())) for group in self.readers.values() if len(group) > 1)


def _common(paths: list[str]) -> str:
    parts = zip(*(p.split(".") for p in paths), strict=False)
    return ".".join(p[0] for p in takewhile(lambda p: len(set(p)) == 1, parts))
