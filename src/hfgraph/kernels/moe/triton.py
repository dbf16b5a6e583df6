"""Mixtures of experts in Triton: pairs of a token and a choice, sorted by expert on the device, go through two grouped products.

The host never asks how many rows an expert has. It launches as many programs as any choice of experts may need; each finds its expert from where
the experts' rows end, and those that are left over return at once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from hfgraph.kernels.floats import TYPES
from hfgraph.kernels.launch import Launch
from hfgraph.kernels.moe import _kernels
from hfgraph.kernels.moe._config import config_for, is_regular
from hfgraph.kernels.moe._launches import launches
from hfgraph.kernels.strides import small_steps

AOT: tuple[Launch, ...] = launches()


def moe(
    x: Tensor, expert_ids: Tensor, expert_weights: Tensor, gate_up: Tensor, down: Tensor, gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None, activation: str = "silu", alpha: float = 1.0, gate_max: float | None = None, act_max: float | None = None,
    up_min: float | None = None, up_max: float | None = None, up_offset: float = 0.0, interleaved: int = 0, weights_first: int = 0,
) -> Tensor:  # fmt: skip
    """The op's reference as two kernels: x (T, H), ids and weights (T, K), gate_up (E, 2I or I, H), down (E, H, I); returns (T, H), fresh and contiguous."""
    tokens, choices = expert_ids.shape
    assert len(x) == len(expert_weights) == tokens, f"there are {len(x)} tokens, choices of {tokens} and weights of {len(expert_weights)}"
    pairs, (experts, width, inner) = tokens * choices, down.shape
    assert pairs < 2**31, "pairs are numbered in 32 bits"
    if pairs == 0:
        return x.new_empty(tokens, width)
    limits = {"gate_max": gate_max, "act_max": act_max, "up_min": up_min, "up_max": up_max}
    gated = gate_up.shape[1] != inner
    gate = {"ACTIVATION": activation, "OFFSET": float(up_offset), "GATED": gated, "INTERLEAVED": gated and bool(interleaved)}
    gate |= {"alpha": float(alpha), **{n: None if limit is None else float(limit) for n, limit in limits.items()}}
    before, after = (expert_weights, None) if weights_first else (None, expert_weights)
    weighted = torch.promote_types(gate_up.dtype, gate_up.dtype if after is None else after.dtype)
    x = small_steps(x)
    between = torch.empty((pairs, inner), dtype=gate_up.dtype, device=x.device)
    results = torch.empty((pairs, width), dtype=weighted, device=x.device)
    tokens_in = {"x": x, "inner": between, "x_t": x.stride(0), "x_h": x.stride(1), "FACTORED": TYPES[torch.promote_types(x.dtype, expert_weights.dtype)]}
    with torch.cuda.device_of(x):
        order, ends = sorted_by_expert(expert_ids, experts)
        common = {"order": order, "ends": ends, "CHOICES": choices, "WIDTH": width, "INNER": inner}
        _launch(_kernels.up, inner, before, gate_up, gate_up_bias, common | tokens_in | gate, gated)
        _launch(_kernels.down, width, after, down, down_bias, common | {"inner": between, "out": results}, False)
    return results.view(tokens, choices, width).sum(1).to(x.dtype)


def sorted_by_expert(expert_ids: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """The numbers of all pairs (P,), those of one expert side by side, and where each expert's end (E,), int32."""
    ids, order = torch.sort(expert_ids.reshape(-1))
    numbers = torch.arange(experts, device=ids.device, dtype=ids.dtype)
    return order, torch.searchsorted(ids, numbers, right=True, out_int32=True)


def _launch(kernel: Any, columns: int, weights: Tensor | None, matrices: Tensor, biases: Tensor | None, given: dict[str, Any], gated: bool) -> None:
    """One product with results of as many columns; `given` is what the kernel takes beside its weights, matrices and biases."""
    matrices = small_steps(matrices)
    pairs, experts = len(given["order"]), len(matrices)
    regular = is_regular(matrices) and ("x" not in given or (is_regular(given["x"]) and given["x_h"] == 1))
    config = config_for(pairs, experts, matrices.element_size(), regular)
    tiles = config.tiles(pairs, experts)
    strides = {"w": ("tc", weights), "m": ("enk", matrices), "b": ("en", biases)}
    steps = {f"{t}_{d}": 0 if tensor is None else tensor.stride(i) for t, (dims, tensor) in strides.items() for i, d in enumerate(dims)}
    given = {**given, **steps, "weights": weights, "matrices": matrices, "biases": biases, "tiles": tiles, "EXPERTS": experts}
    grid = (tiles * triton.cdiv(columns, config.width(gated)),)
    kernel[grid](**given, BLOCK=triton.next_power_of_2(experts), **config.constants(gated), **config.options)
