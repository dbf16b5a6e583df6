"""What stands in an autocast region, or holds the conjugate of a table, is read as it runs there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hfgraph


class OwnQueries(nn.Module):
    """Keys and values of a part of the sequence, queries of all of it: of three linears two have one input."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            part = x[:, 4:]
            q, k, v = (f(t).view(2, -1, 4, 8).transpose(1, 2) for f, t in ((self.q, x), (self.k, part), (self.v, part)))
            return (q @ k.mT).softmax(-1) @ v


@torch.no_grad()
def test_linears_merge_in_an_autocast_region() -> None:
    model, x = OwnQueries().eval(), torch.randn(2, 12, 32)
    got = torch.compile(model, backend="hfgraph", options={"strict": True, "inductor": False, "merge_always": True})(x)
    assert hfgraph.last_report().counts["merged_linear"] == 1
    torch.testing.assert_close(got, model(x), atol=2e-2, rtol=0)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("conjugate", (False, True))
@torch.no_grad()
def test_a_rotation_by_a_conjugate(conjugate: bool) -> None:
    def turned(x: Tensor) -> Tensor:
        table = torch.polar(torch.ones(5, 4), torch.arange(5.0)[:, None] * torch.arange(4.0))
        table = table.conj() if conjugate else table
        return torch.view_as_real(torch.view_as_complex(x.reshape(2, 5, 4, 2)) * table).flatten(2)

    x = torch.randn(2, 5, 8)
    got = torch.compile(turned, backend="hfgraph", options={"strict": True, "inductor": False})(x)
    assert hfgraph.last_report().counts["rope"] == 1
    torch.testing.assert_close(got, turned(x), atol=1e-6, rtol=0)
