"""Mamba-2, state space duality (Dao and Gu, 2024, arXiv:2405.21060): a state per head, with one decay for all of it."""

from __future__ import annotations

from torch import Tensor

from hfgraph.rewrites.recurrences.recurrence import Form, Recurrence


def _step(state: Tensor, x: Tensor, decay: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    state = state * decay[..., None, None] + x.unsqueeze(-1) * b.unsqueeze(-2)
    return state, (state * c.unsqueeze(-2)).sum(-1)


_FORM = Form(_step, {"x": "H P", "decay": "H", "b": "H N", "c": "H N"})
KIND = Recurrence(state="H P N", forms=(_FORM.logged, _FORM))
