"""A rule is a value with a name: a pattern, what to put in its place, and when."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.fx import Node

from hfgraph.graph.inputs import Inputs


class Where(Protocol):
    """What a rule asks of the graph that a match stands in, beyond what its pattern says."""

    def __call__(self, leaves: Mapping[str, Node]) -> str | None:
        """The reason against a match, from the nodes bound to the rule's tensors; None where there is none."""
        ...

    def examples(self, tensors: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
        """For tests: tensors of the same shapes and dtypes, computed from `tensors` in each of the ways that are accepted."""
        ...


@dataclass(frozen=True, eq=False)
class Rule:
    """Rewrites `pattern` into `replacement`.

    Both are plain PyTorch functions of the same parameters, which `inputs` describes: strings are tensors, `Scalar`,
    `Dtype` and `Choice` are values bound from the graph. A pattern may return several tensors, as long as they are connected
    through more than its inputs; it may depend on dtypes only by casting. ``when(**bound)`` receives fake tensors and bound values and returns a bool; it must
    not ask for the value of a symbolic size. ``where(leaves)`` receives graph nodes, for rules that must know where a tensor comes from.
    A pattern of `everyday` operators begins in many places that are nothing like it: only a match that something forbids counts as a near miss.
    """

    pattern: Callable[..., Any]
    replacement: Callable[..., Any]
    inputs: Inputs
    when: Callable[..., bool] | None = None
    where: Where | None = None
    everyday: bool = False
    name: str = ""
    stage: str = ""
    digest: str = ""

    def named(self, name: str, stage: str, file: str) -> Rule:
        """The rule as discovered: its file gives its name, its folder its stage, its source part of the cache key."""
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
        return replace(self, name=name, stage=stage, digest=digest)
