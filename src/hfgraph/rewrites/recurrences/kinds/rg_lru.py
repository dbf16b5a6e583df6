"""RG-LRU, a linear recurrence with gates (De et al., 2024, arXiv:2402.19427): the state is the output."""

from __future__ import annotations

from torch import Tensor

from hfgraph.rewrites.recurrences.recurrence import Form, Recurrence


def _step(state: Tensor, decay: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    state = state * decay + x
    return state, state


KIND = Recurrence(state="D", forms=(Form(_step, {"decay": "D", "x": "D"}),))
