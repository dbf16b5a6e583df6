"""ALiBi among biases: one that falls evenly with the distance, at the same rate for all queries of a head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.fx import Node

from hfgraph.graph.evaluate import CannotEvaluate, data, evaluate
from hfgraph.graph.recogniser import View
from hfgraph.graph.values import same_size, val
from hfgraph.rewrites.attending.factors import Bias, Factor
from hfgraph.rewrites.attending.pairs import Pairs
from hfgraph.rewrites.attending.reach import is_linear


def slopes_among(biases: Sequence[Bias], q: Node, k: Node, view: View) -> tuple[list[float] | None, list[Bias]]:
    """The slope of each head, and the biases that are left; None where no bias has slopes."""
    for bias in biases:
        key = ("slopes", bias, str(val(q).shape), str(val(k).shape))
        if key not in view.memo:
            view.memo[key] = _slopes_of(bias.node, q, k)
        if view.memo[key] is not None:
            return [bias.factor * s for s in view.memo[key]], [b for b in biases if b is not bias]
    return None, list(biases)


def _slopes_of(bias: Node, q: Node, k: Node) -> list[float] | None:
    """Where it is linear by the way it is made, a few lengths say what it is at all."""
    if data(bias, {}) or val(bias).ndim < 3 or not is_linear(bias):
        return None
    found: list[list[float]] = []
    try:
        for sizes in Pairs(q, k).few([Factor(bias)]):
            (values,) = evaluate([bias], sizes, {})
            rows = values.double().reshape(-1, *values.shape[-3:])
            keys = rows.shape[-1]
            if keys < 2:
                continue
            rate = rows[..., :1, 1] - rows[..., :1, 0]
            line = rate[..., None] * torch.arange(keys)
            # A narrow dtype rounds far positions: that would have to be done again.
            rounding = torch.finfo(torch.float32).eps * (rows.abs().max() + 1)
            if not torch.allclose(rows - rows[..., :1], line.expand_as(rows), atol=float(4 * rounding), rtol=0) or len(rate.unique(dim=0)) > 1:
                return None
            found.append(rate[0, :, 0].tolist())
    except CannotEvaluate:
        return None
    heads = val(q).shape[-3]
    same = found and all(math.isclose(a, b, rel_tol=1e-2) for f in found for a, b in zip(f, found[0], strict=True))
    return found[0] if same and same_size(len(found[0]), heads) and any(found[0]) else None
