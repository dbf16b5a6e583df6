"""What `hfgraph.verify` found, as objects, a dict and text."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from torch.utils._pytree import tree_map


@dataclass(frozen=True)
class OutputCheck:
    """One output of one graph, on one side, under one set of weights; errors as in `hfgraph.graph.judge.Error`."""

    weights: str  # "perturbed" or "true"
    side: str  # "rewritten" or "compiled"
    name: str
    error: float
    allowed: float
    largest: float
    ok: bool


@dataclass(frozen=True)
class SiteCheck:
    """The value that a rewritten site computes, against the one it replaced."""

    rule: str
    module: str
    error: float
    allowed: float
    ok: bool


@dataclass
class Verdict:
    """What `verify` found. True where everything holds.

    Attributes:
        outputs: every graph's outputs and written inputs, rewritten and compiled, on perturbed and true weights.
        sites: the worst comparison of each rewritten site.
        sabotage: rule -> whether falsifying it was noticed; empty unless asked for.
        unrewritten: reasons why graphs were left as they were.
        unproven: what numbers cannot decide, and why.
    """

    outputs: list[OutputCheck] = field(default_factory=list)
    sites: list[SiteCheck] = field(default_factory=list)
    sabotage: dict[str, bool] = field(default_factory=dict)
    unrewritten: list[str] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.right and not self.unproven

    @property
    def right(self) -> bool:
        """All that was compared holds."""
        return all(o.ok for o in self.outputs) and all(s.ok for s in self.sites) and all(self.sabotage.values())

    @property
    def max_error(self) -> float:
        """The largest distance of an output from float64."""
        return max((o.largest for o in self.outputs), default=0.0)

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """Plain values; an error that is not finite (a wrong shape, say) is None, which JSON can hold."""
        return tree_map(_finite, {"ok": self.ok, "max_error": self.max_error, **asdict(self)})

    def __str__(self) -> str:
        from hfgraph.tables import verdict_text

        return verdict_text(self)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
