"""A rule is a value with a name: a pattern, what to put in its place, and when."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hfgraph.graph.inputs import Inputs


@dataclass(frozen=True, eq=False)
class Rule:
    """Rewrites `pattern` into `replacement`.

    Both are plain PyTorch functions of the same parameters, which `inputs` describes: strings are tensors, `Scalar`
    and `Dtype` are values bound from the graph. A pattern may return several tensors, as long as they are connected
    through more than its inputs; it may depend on dtypes only by casting. ``when(**bound)`` receives fake tensors and bound values and returns a bool; it must
    not ask for the value of a symbolic size.
    """

    pattern: Callable[..., Any]
    replacement: Callable[..., Any]
    inputs: Inputs
    when: Callable[..., bool] | None = None
    name: str = ""
    stage: str = ""
    digest: str = ""

    def named(self, name: str, stage: str, file: str) -> Rule:
        """The rule as discovered: its file gives its name, its folder its stage, its source part of the cache key."""
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
        return replace(self, name=name, stage=stage, digest=digest)
