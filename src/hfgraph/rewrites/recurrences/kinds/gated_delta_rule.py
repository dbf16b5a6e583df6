"""Gated delta rule (Yang et al., 2024, arXiv:2412.06464): what a key holds already is corrected, not added to; the state decays.

With a decay for each channel of the keys it is Kimi's (Kimi Team, 2025, arXiv:2510.26692).
"""

from __future__ import annotations

from torch import Tensor

from hfgraph.rewrites.recurrences.recurrence import Form, Recurrence


def _corrected(state: Tensor, k: Tensor, delta: Tensor) -> Tensor:
    return state + k.unsqueeze(-1) * delta.unsqueeze(-2)


def _read(state: Tensor, k: Tensor) -> Tensor:
    return (state * k.unsqueeze(-1)).sum(-2)


def _by_head(state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    return _by_channel(state, q, k, v, decay.unsqueeze(-1), beta)


def _by_channel(state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    state = state * decay.unsqueeze(-1)
    state = _corrected(state, k, (v - _read(state, k)) * beta.unsqueeze(-1))
    return state, _read(state, q)


def _by_head_scaled(state: Tensor, q: Tensor, k: Tensor, decay: Tensor, k_beta: Tensor, v_beta: Tensor) -> tuple[Tensor, Tensor]:
    return _by_channel_scaled(state, q, k, decay.unsqueeze(-1), k_beta, v_beta)


def _by_channel_scaled(state: Tensor, q: Tensor, k: Tensor, decay: Tensor, k_beta: Tensor, v_beta: Tensor) -> tuple[Tensor, Tensor]:
    state = state * decay.unsqueeze(-1)
    state = _corrected(state, k, v_beta - _read(state, k_beta))
    return state, _read(state, q)


_ROWS = {"q": "H K", "k": "H K", "v": "H V"}
_SCALED = {"q": "H K", "k": "H K", "k_beta": "H K", "v_beta": "H V"}
_CHANNELS = "a decay for each channel"
_FORMS = (
    Form(_by_head, {**_ROWS, "decay": "H", "beta": "H"}),
    Form(_by_channel, {**_ROWS, "decay": "H K", "beta": "H"}, note=_CHANNELS),
    Form(_by_head_scaled, {**_SCALED, "decay": "H"}),
    Form(_by_channel_scaled, {**_SCALED, "decay": "H K"}, note=_CHANNELS),
)
KIND = Recurrence(state="H K V", forms=(*(f.logged for f in _FORMS), *_FORMS))
