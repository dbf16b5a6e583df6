"""Copies and inactive dropout go; what was written through views of them is written all the same, and what leaves the graph is nobody else's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hfgraph

PLAIN = {"inductor": False, "strict": True, "merge_always": True}


def dropped(x: Tensor) -> Tensor:
    return F.dropout(x, 0.3, training=False)


def flattened(x: Tensor) -> Tensor:
    d = dropped(x.sin())
    d.view(-1).mul_(2)
    return d


def turned(x: Tensor) -> Tensor:
    d = dropped(x.sin())
    d.transpose(0, 1).add_(1)
    return d


def partly(x: Tensor) -> Tensor:
    d = dropped(x.sin())
    d.view(-1)[:3] = 0
    return d + 1


def of_a_copy(x: Tensor) -> Tensor:
    d = dropped(x.clone())
    d.view(2, -1)[0] = 0
    return d * 3


@pytest.mark.parametrize("function", (flattened, turned, partly, of_a_copy))
@torch.no_grad()
def test_what_is_written_through_a_view_is_there(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 4)
    want, before = function(x.clone()), x.clone()
    assert torch.equal(torch.compile(function, backend="hfgraph", options=PLAIN)(x), want) and torch.equal(x, before)


@pytest.mark.parametrize(
    "function",
    (lambda x: dropped(x * 1)[:, 1:], lambda x: dropped(x.clone()).view(-1), lambda x: dropped((x / 1).unflatten(0, (1, -1))).transpose(1, 2)),
    ids=("slice", "view", "transpose"),
)
@torch.no_grad()
def test_what_is_returned_is_no_view_of_an_input(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 4)
    before = x.clone()
    torch.compile(function, backend="hfgraph", options=PLAIN)(x).fill_(7.0)
    assert torch.equal(x, before)


class Projections(nn.Module):
    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.k(x)) + 0 * (self.q(x).sum() + self.v(x).sum())


class Returned(Projections):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.q(x), self.after(self.k(x)), self.v(x)


def windows(x: Tensor) -> Tensor:
    """Overlapping ones, as Longformer's."""
    return x.as_strided((2, 3, 64), (160, 32, 1)).sum(-1)


@pytest.mark.parametrize(
    "after", (lambda k: windows(dropped(k).view(2, -1)), lambda k: windows((k * 1.0).unflatten(-1, (4, 8))), lambda k: windows(dropped(k).transpose(1, 2))),
    ids=("dropout", "product by one", "transposed"),
)  # fmt: skip
@torch.no_grad()
def test_merged_linears_that_are_read_by_strides(after: Callable[[Tensor], Tensor]) -> None:
    model, x = Projections(after).eval(), torch.randn(2, 5, 32)
    got = torch.compile(model, backend="hfgraph", options=PLAIN)(x)
    assert hfgraph.last_report().counts["merged_linear"] == 1
    torch.testing.assert_close(got, model(x), atol=1e-5, rtol=0)


def first_masked(k: Tensor) -> Tensor:
    k[:, 0] = 0
    return k


def inner_masked(k: Tensor) -> Tensor:
    k[:, 1:3] = 0
    return k.view(2, 5, 4, 8)


@pytest.mark.parametrize("after", (first_masked, inner_masked, lambda k: dropped(k).transpose(1, 2), lambda k: torch.select_scatter(k, k[:, 1] * 2, 1, 0)))
@torch.no_grad()
def test_merged_linears_leave_with_the_models_strides(after: Callable[[Tensor], Tensor]) -> None:
    model, x = Returned(after).eval(), torch.randn(2, 5, 32)
    got = torch.compile(model, backend="hfgraph", options=PLAIN)(x)
    assert hfgraph.last_report().counts["merged_linear"] == 1
    for ours, own in zip(got, model(x), strict=True):
        torch.testing.assert_close(ours, own, atol=1e-5, rtol=0, check_stride=True)


class Overwritten(nn.Module):
    def __init__(self, write: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        self.write(h, self.b(x))
        return h


@pytest.mark.parametrize("write", (lambda h, y: h.copy_(y), lambda h, y: h.__setitem__(slice(None), y), lambda h, y: h[:, 2:].copy_(y[:, 2:])))
def test_what_is_written_over_has_a_gradient_of_zeros(write: Callable[[Tensor, Tensor], object]) -> None:
    """None would have optimizers leave it out, weight decay and all."""
    model, x = Overwritten(write), torch.randn(3, 8)
    model(x).sum().backward()
    want = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    torch.compile(model, backend="hfgraph", options=PLAIN)(x).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, want[name], atol=1e-5, rtol=0)
