"""Costs against counts by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captured import captured, traced

from hfgraph.graph.cost import cost
from hfgraph.kernels.rms_norm import rms_norm

B, T, D, N = 2, 3, 8, 16
x = torch.ones(B, T, D)


def total(function: Callable[..., Any], *args: Any) -> tuple[int, int]:
    found = [cost(n) for n in traced(function, *args).graph.nodes]
    return sum(c.flops for c in found), sum(c.bytes for c in found)


@pytest.mark.parametrize(
    ("function", "args", "flops", "elements"),
    [
        (lambda a: a * 2.0, (x,), 48, 96),
        (lambda a, b: a + b, (x, x[0, 0]), 48, 48 + 8 + 48),
        (lambda a: a.sum(), (x,), 48, 49),
        (lambda a: a.reshape(6, 8).permute(1, 0)[2:].unsqueeze(0), (x,), 0, 0),
        (lambda a, w: F.linear(a, w), (x, torch.ones(N, D)), 2 * 6 * 8 * 16, 48 + 128 + 96),
        (lambda a, b: torch.bmm(a, b), (x, torch.ones(B, D, N)), 2 * B * T * D * N, 48 + 256 + 96),
        (lambda a, w, b: torch.addmm(b, a, w), (x[0], torch.ones(D, N), torch.ones(N)), 2 * T * D * N, 24 + 128 + 16 + 48),
        (lambda a, b: torch.einsum("btd,nd->btn", a, b), (x, torch.ones(N, D)), 2 * B * T * D * N, 48 + 128 + 96),
        (lambda a, b: torch.einsum("...d,nd->...n", a, b), (x, torch.ones(N, D)), 2 * B * T * D * N, 48 + 128 + 96),
        (lambda a: torch.einsum("bij->b", a), (x,), 48, 48 + 2),
        (lambda q, k: F.scaled_dot_product_attention(q, k, k), (torch.ones(1, 4, 5, 8), torch.ones(1, 4, 7, 8)), 2 * 2 * 4 * 5 * 7 * 8, 160 + 2 * 224 + 160),
        (lambda a, w: F.conv2d(a, w, stride=2), (torch.ones(1, 3, 8, 8), torch.ones(5, 3, 2, 2)), 2 * 5 * 16 * 12, 192 + 60 + 80),
    ],
)  # fmt: skip
def test_by_hand(function: Callable[..., Any], args: tuple[Any, ...], flops: int, elements: int) -> None:
    assert total(function, *args) == (flops, 4 * elements)


def test_a_cast_is_not_a_view() -> None:
    assert total(lambda a: a.to(torch.bfloat16), x) == (48, 48 * 4 + 48 * 2)


def test_of_a_table_only_the_rows_asked_for_are_read() -> None:
    assert total(lambda i, w: F.embedding(i, w), torch.zeros(3, dtype=torch.long), torch.ones(1000, 4)) == (0, 3 * 8 + 2 * 12 * 4)


def test_an_op_has_its_own() -> None:
    weight = torch.ones(D)
    own = rms_norm.cost(x, weight, 1e-6)
    assert total(lambda a, w: rms_norm(a, w, 1e-6), x, weight) == (own.flops, own.bytes)
    assert own.flops > 0


def test_symbolic_sizes_count_as_traced() -> None:
    def function(a: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return rms_norm(F.linear(a, w), None, 1e-6)

    args = x, torch.ones(N, D)
    found = [cost(n) for n in captured(function, *args, dynamic=True).graphs[0].graph.nodes]
    assert (sum(c.flops for c in found), sum(c.bytes for c in found)) == total(function, *args)
    assert all(type(c.flops) is int and type(c.bytes) is int for c in found)


def test_a_size_from_the_data_counts_as_one() -> None:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        graph = captured(lambda a: a.nonzero() + 1, torch.ones(5)).graphs[0].graph
    assert all(type(cost(n).flops) is int for n in graph.nodes)
