"""RWKV-4 (Peng et al., 2023, arXiv:2305.13048): an average over the past that decays, with a bonus for the token itself.

The state is numerator, denominator and the largest exponent so far, which the other two are relative to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfgraph.rewrites.recurrences.recurrence import Form, Recurrence


def _step(state: Tensor, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor) -> tuple[Tensor, Tensor]:
    numerator, denominator, largest = state.unbind(1)
    here = _added(numerator, denominator, largest, k + bonus, v)
    return torch.stack(_added(numerator, denominator, largest + decay, k, v), 1), here[0] / here[1]


def _added(numerator: Tensor, denominator: Tensor, largest: Tensor, exponent: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    top = torch.maximum(largest, exponent)
    old, new = (largest - top).exp(), (exponent - top).exp()
    return numerator * old + v * new, denominator * old + new, top


KIND = Recurrence(
    state="3 D",
    forms=(Form(_step, {"k": "D", "v": "D", "decay": "D", "bonus": "D"}, constant=frozenset({"decay", "bonus"})),),
    start=(0.0, 0.0, -1e38),
)
