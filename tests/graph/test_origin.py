"""Where a node comes from, in words."""

from __future__ import annotations

import pytest
import torch
from captured import captured
from torch import Tensor, nn

from hfgraph.graph.origin import modules, origin, readable
from hfgraph.graph.snapshot import snapshot


@pytest.mark.parametrize(
    ("dynamo", "people"),
    [
        ("l_self_modules_lm_head_parameters_weight_", "lm_head.weight"),
        ("l_self_modules_model_modules_layers_modules_0_modules_mlp_parameters_bias_", "model.layers.0.mlp.bias"),
        ("l_args_0_modules_norm_parameters_weight_", "norm.weight"),
        ("L_self_parameters_weight_", "weight"),
        ("l_self_modules_rotary_buffers_inv_freq_", "rotary.inv_freq"),
        ("L_input_ids_", "input_ids"),
        ("l_kwargs_attention_mask_", "kwargs_attention_mask"),
        ("L_args_0_", "args_0"),
        ("s77", "s77"),
    ],
)
def test_readable(dynamo: str, people: str) -> None:
    assert readable(dynamo) == people


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight  # the line


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Inner() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x + 1


def test_module_line_and_text() -> None:
    graph = captured(Outer(), torch.ones(2, 4)).graphs[0].graph
    first, second = (n for n in graph.nodes if n.name.startswith("mul"))
    assert origin(first).module == "layers.0" and origin(second).module == "layers.1"
    assert origin(first).source.startswith("test_origin.py:") and origin(first).code == "return x * self.weight  # the line"
    assert list(modules(second)) == [("layers.1", "Inner")]


def test_a_snapshot_is_text_alone() -> None:
    graph = captured(Outer(), torch.ones(2, 4)).graphs[0].graph
    shown = {n.name: n for n in snapshot(graph).nodes}
    mul = shown["mul"]
    assert (mul.label, mul.kind, mul.value, mul.module) == ("mul", "call", "f32 [2, 4]", "layers.0")
    assert {shown[name].label for name in mul.inputs} == {"layers.0.weight", "x"}
    assert mul.call.startswith("mul(") and mul.bytes == (8 + 4 + 8) * 4
    assert snapshot(graph).modules == {"layers.0": "Inner", "layers.1": "Inner"}
    assert shown["add"].inputs == ("mul_1",) and shown["output"].kind == "output"
