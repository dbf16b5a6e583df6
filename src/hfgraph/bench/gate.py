"""Is it right? Logits of the timed inputs, in the timed shapes, against float64; eager's own error says what is allowed.

The rule is `hfgraph.graph.judge`'s. A rule falsified by three per cent shows at the logits also in bfloat16, at about
three times of what is allowed, and a sound system stays at about half: no second gate in float32 is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hfgraph.graph.judge import judge

_NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16})


@dataclass(frozen=True)
class Check:
    """One task's logits by one system.

    Attributes:
        error: distance from the reference, by the worst element or on average, whichever is nearer to its bound.
        allowed: the bound.
        relative: root mean square of the distance, as a share of the logits' own: the figure to compare systems by.
    """

    system: str
    task: str
    error: float
    allowed: float
    relative: float
    ok: bool

    @property
    def sentence(self) -> str:
        """What is wrong, for people."""
        times = f"{self.error / self.allowed:.1f} times of what is" if self.allowed > 0 else "none is"
        return f"{self.system}, {self.task}: logits are off by {self.error:.2g}, {times} allowed ({self.allowed:.2g})"


class Widened(TorchDispatchMode):
    """Models cast to float32 by name, in norms and in softmax; a reference in float64 stays in float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        wide = {name: torch.float64 if isinstance(v, torch.dtype) and v in _NARROW else v for name, v in (kwargs or {}).items()}
        return func(*args, **wide)


@contextmanager
def reference(dtype: torch.dtype) -> Iterator[None]:
    """Compute in it what models ask to have in float32."""
    if dtype != torch.float64:
        yield
        return
    with Widened():
        yield


class Logits:
    """Logits in a folder, which one process leaves for the others."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def put(self, kind: str, task: str, values: Tensor) -> None:
        """Keep them."""
        torch.save(values.cpu(), self._folder / f"{kind}-{task}.pt")

    def get(self, kind: str, task: str) -> Tensor:
        """Look them up."""
        return torch.load(self._folder / f"{kind}-{task}.pt")

    def check(self, system: str, task: str, values: Tensor) -> Check:
        """Judge a system's logits."""
        eager, exact, mine = self.get("eager", task), self.get("exact", task), values.cpu()
        found = judge(mine, eager, exact)
        off = mine.double() - exact.double() if mine.shape == exact.shape else torch.full_like(exact, torch.inf)
        return Check(system, task, found.error, found.allowed, _rms(off) / max(_rms(exact), 1e-300), found.ok)


def _rms(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item()
