"""Mamba, a selective state space (Gu and Dao, 2023, arXiv:2312.00752): a small state for each channel, with a decay for each of its entries."""

from __future__ import annotations

from torch import Tensor

from hfgraph.rewrites.recurrences.recurrence import Form, Recurrence


def _step(state: Tensor, decay: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    state = state * decay + x
    return state, (state * c.unsqueeze(-2)).sum(-1)


KIND = Recurrence(state="D N", forms=(Form(_step, {"decay": "D N", "x": "D N", "c": "N"}),))
