"""RG-LRU (De et al., 2024, arXiv:2402.19427): the state is the output. What is looked at is the recurrence; its gates may be any."""

from __future__ import annotations

from torch import Tensor

from hfgraph.rewrites.recurrences.recurrence import Form, Recurrence


def _step(state: Tensor, decay: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    state = state * decay + x
    return state, state


KIND = Recurrence(state="D", forms=(Form(_step, {"decay": "D", "x": "D"}, note="h = a * h + x, whatever its gates"),))
