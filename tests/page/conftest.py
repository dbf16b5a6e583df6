"""Reports for the page's tests: a model with repeated layers, one odd norm, and a graph break."""

from __future__ import annotations

import pytest
import torch
from page_cases import ODD, QuarticNorm, explained, llama
from torch import Tensor

import hfgraph
from hfgraph.report import Report


@pytest.fixture(scope="session")
def plain() -> Report:
    """Eight layers, of which all but the first are alike."""
    return explained(llama(8))


@pytest.fixture(scope="session")
def odd() -> Report:
    """Eight layers, two of them with a norm that nearly is one."""
    model = llama(8)
    for i in ODD:
        model.model.layers[i].input_layernorm = QuarticNorm(32)
    return explained(model)


@pytest.fixture(scope="session")
def broken() -> Report:
    """A function of several graphs."""

    def function(x: Tensor) -> Tensor:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        torch._dynamo.graph_break()
        return y.sin()

    return hfgraph.explain(function, torch.ones(2, 8))
