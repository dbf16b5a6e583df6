"""Spellings of mixtures of experts, for the tests: each is written as some model writes it, after its activation was recognised."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hfgraph.graph.recogniser import Example
from hfgraph.kernels.glu import glu
from hfgraph.kernels.moe.grouped import grouped_mm

_TOKENS, _CHOICES, _EXPERTS, _WIDTH, _INNER = 11, 3, 5, 16, 24
_FIXED = (_CHOICES, _EXPERTS, _WIDTH, _INNER, 2 * _INNER)
Routed = Callable[..., Tensor]


def _made(*shapes: tuple[int, ...], scores: bool = False) -> Callable[[torch.dtype, int], tuple[Tensor, ...]]:
    """Tokens, ids and weights of their experts (or scores of all experts), and tensors of further shapes."""

    def make(dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, dtype=torch.float64).to(dtype)

        ranks = torch.rand(_TOKENS, _EXPERTS, generator=generator).argsort(-1)
        routed = (ranks.to(dtype) * 0.7 - 1,) if scores else (ranks[:, :_CHOICES].contiguous(), normal(_TOKENS, _CHOICES).abs() + 0.2)
        return (normal(_TOKENS, _WIDTH), *routed, *(normal(*s) * 0.3 for s in shapes))

    return make


def _sorted(x: Tensor, ids: Tensor, weights: Tensor, experts: int, expert: Routed, choices: int = _CHOICES) -> Tensor:
    """Rows sorted by expert; `expert` takes the rows, their ids and where each expert's rows end."""
    flat = ids.reshape(-1)
    sorted_ids, order = torch.sort(flat)
    rows, own = x[order // choices], weights.reshape(-1)[order]
    counts = torch.histc(sorted_ids.float(), bins=experts, min=0, max=experts - 1)
    rows = expert(rows, sorted_ids, torch.cumsum(counts, dim=0, dtype=torch.int32)) * own.unsqueeze(-1)
    inverse = torch.empty_like(order).index_put((order,), torch.arange(order.shape[0]))
    return rows[inverse].view(x.shape[0], choices, x.shape[1]).sum(dim=1).to(x.dtype)


def sorted_rows(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Most models: gate and up in one product, matrices (E, out, in), weights of the router in float32."""

    def expert(rows: Tensor, sorted_ids: Tensor, ends: Tensor) -> Tensor:
        gate, up = grouped_mm(rows, gate_up.transpose(1, 2), ends).chunk(2, -1)
        return grouped_mm(glu(gate, up, "silu"), down.transpose(1, 2), ends)

    return _sorted(x, ids, weights.float(), _EXPERTS, expert)


def sorted_interleaved(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, gate_up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
    """Gates in every other column, clamps, biases, matrices (E, in, out)."""

    def expert(rows: Tensor, sorted_ids: Tensor, ends: Tensor) -> Tensor:
        both = grouped_mm(rows, gate_up, ends) + gate_up_bias[sorted_ids]
        rows = glu(both[:, ::2], both[:, 1::2], "swish", 1.7, gate_max=0.7, up_min=-0.7, up_max=0.7, up_offset=1.0)
        return grouped_mm(rows, down, ends) + down_bias[sorted_ids]

    return _sorted(x, ids, weights, _EXPERTS, expert)


def sorted_ungated(x: Tensor, ids: Tensor, weights: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Without a gate: a squared ReLU between two products."""

    def expert(rows: Tensor, sorted_ids: Tensor, ends: Tensor) -> Tensor:
        return grouped_mm(torch.relu(grouped_mm(rows, up.transpose(1, 2), ends)).pow(2), down.transpose(1, 2), ends)

    return _sorted(x, ids, weights, _EXPERTS, expert)


def _gathered(x: Tensor, ids: Tensor, weights: Tensor, expert: Routed) -> Tensor:
    """Each row with a copy of its own matrices; `expert` takes the rows and their ids."""
    rows = expert(x.repeat_interleave(_CHOICES, dim=0), ids.reshape(-1)) * weights.reshape(-1).unsqueeze(-1)
    return rows.view(x.shape[0], _CHOICES, x.shape[1]).sum(dim=1)


def gathered(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """What `generate` may switch to for few tokens."""

    def expert(rows: Tensor, flat: Tensor) -> Tensor:
        gate, up = torch.bmm(gate_up[flat], rows.unsqueeze(-1)).squeeze(-1).chunk(2, -1)
        return torch.bmm(down[flat], glu(gate, up, "gelu_tanh").unsqueeze(-1)).squeeze(-1)

    return _gathered(x, ids, weights, expert)


def gathered_turned(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, gate_up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
    """The same with matrices (E, in, out) and biases."""

    def expert(rows: Tensor, flat: Tensor) -> Tensor:
        both = torch.bmm(rows.unsqueeze(1), gate_up[flat]).squeeze(1) + gate_up_bias[flat]
        rows = glu(both[:, :_INNER], both[:, _INNER:], "silu", gate_max=0.7, up_min=-0.7, up_max=0.7)
        return torch.bmm(rows.unsqueeze(1), down[flat]).squeeze(1) + down_bias[flat]

    return _gathered(x, ids, weights, expert)


def dense(x: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """All experts on all tokens, each times its score first; a score that is not among the largest becomes zero."""
    values, ids = torch.topk(scores, _CHOICES, dim=1)
    chosen = torch.full_like(scores, float("-inf")).scatter(1, ids, values)
    chosen = torch.sigmoid(chosen.float()).to(scores.dtype)
    rows = x.repeat(_EXPERTS, 1) * chosen.transpose(0, 1).reshape(-1, 1)
    gate, up = torch.bmm(rows.view(_EXPERTS, -1, _WIDTH), gate_up).chunk(2, dim=-1)
    rows = torch.bmm(glu(gate, up, "silu"), down).view(-1, _WIDTH)
    return rows.reshape(_EXPERTS, -1, _WIDTH).sum(dim=0)


_UPRIGHT = ((_EXPERTS, 2 * _INNER, _WIDTH), (_EXPERTS, _WIDTH, _INNER))
_TURNED = ((_EXPERTS, _WIDTH, 2 * _INNER), (_EXPERTS, 2 * _INNER), (_EXPERTS, _INNER, _WIDTH), (_EXPERTS, _WIDTH))
_UNGATED = ((_EXPERTS, _INNER, _WIDTH), (_EXPERTS, _WIDTH, _INNER))

EXAMPLES = (
    Example("sorted", sorted_rows, _made(*_UPRIGHT), equal=("alpha",), fixed=_FIXED),
    Example("sorted, interleaved", sorted_interleaved, _made(*_TURNED), fixed=_FIXED),
    Example("sorted, ungated", sorted_ungated, _made(*_UNGATED), equal=("alpha", "up_offset", "interleaved"), fixed=_FIXED),
    Example("gathered", gathered, _made(*_UPRIGHT), equal=("alpha",), fixed=_FIXED),
    Example("gathered, turned", gathered_turned, _made(*_TURNED), equal=("alpha",), fixed=_FIXED),
    Example("dense", dense, _made((_EXPERTS, _WIDTH, 2 * _INNER), (_EXPERTS, _INNER, _WIDTH), scores=True), equal=("alpha",), fixed=_FIXED),
)
