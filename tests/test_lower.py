"""Lowering, by what a graph is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from hfgraph.graph.capture import capture
from hfgraph.graph.values import is_trained


def trained(model: nn.Module, grad: bool = True) -> list[bool]:
    torch._dynamo.reset()
    seen: list[bool] = []

    def backend(gm: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        seen.append(is_trained(capture(gm, inputs).graph))
        return gm.forward

    with torch.set_grad_enabled(grad):
        torch.compile(model, backend=backend)(torch.randn(2, 4))
    return seen


def test_gradients_may_be_asked_for_where_a_weight_requires_them() -> None:
    """Then no kernel is chosen unasked."""
    assert trained(nn.Linear(4, 4)) == [True]
    assert trained(nn.Linear(4, 4), grad=False) == [False]
    assert trained(nn.Linear(4, 4).requires_grad_(False)) == [False]
