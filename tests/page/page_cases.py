"""Models for the page's tests, and a walk over the page's data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import hfgraph
from hfgraph.report import Report

IDS = torch.arange(14).reshape(2, 7)
ODD = (3, 5)  # layers whose input norm no rule knows


class QuarticNorm(nn.Module):
    """Looks like an RMSNorm, and takes the fourth power."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + 1e-6))


def llama(layers: int) -> Any:
    """A small model with random weights."""
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_hidden_layers=layers)).eval()


def explained(model: Any) -> Report:
    with torch.no_grad():
        return hfgraph.explain(model, IDS, use_cache=False)


def rows(row: dict[str, Any], above: str = "") -> Iterator[dict[str, Any]]:
    """A row of the tree and all rows in it, with the name that the page shows as `full`."""
    full = f"{above}.{row['name']}" if above else row["name"]
    yield {**row, "full": full}
    for child in row["children"]:
        yield from rows(child, full)
