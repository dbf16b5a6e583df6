"""Reports for the page's tests: a model with repeated layers, one odd norm, and a graph break."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import hfgraph
from hfgraph.report import Report

IDS = torch.arange(14).reshape(2, 7)
ODD = (3, 5)  # layers whose input norm no rule knows


class CubicNorm(nn.Module):
    """Looks like an RMSNorm, and takes the third power."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(3).abs().mean(-1, keepdim=True) + 1e-6))


def llama(layers: int) -> Any:
    """A small model with random weights."""
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_hidden_layers=layers)).eval()


def explained(model: Any) -> Report:
    with torch.no_grad():
        return hfgraph.explain(model, IDS, use_cache=False)


@pytest.fixture(scope="session")
def plain() -> Report:
    """Eight layers, of which all but the first are alike."""
    return explained(llama(8))


@pytest.fixture(scope="session")
def odd() -> Report:
    """Eight layers, two of them with a norm that nearly is one."""
    model = llama(8)
    for i in ODD:
        model.model.layers[i].input_layernorm = CubicNorm(32)
    return explained(model)


@pytest.fixture(scope="session")
def broken() -> Report:
    """A function of several graphs."""

    def function(x: Tensor) -> Tensor:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        torch._dynamo.graph_break()
        return y.sin()

    return hfgraph.explain(function, torch.ones(2, 8))
