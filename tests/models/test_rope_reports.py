"""Failures with rotary embeddings that users of other compilers have reported in public, tried on hfgraph. The numbers B.. are those of our log."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from recipes import assert_equal, compiled, tiny, tokens
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import hfgraph
from hfgraph.kernels import all_ops

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "attention_factor": 0.7, "original_max_position_embeddings": 32}
PARTIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "a quarter of 16": ("gpt_neox", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}}),
    "a quarter of 80": ("gpt_neox", {"hidden_size": 320, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}}),
    "a quarter, other projections": ("stablelm", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}}),
    "half, neighbours": ("glm4", {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "half, packed projection": ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "heads of 80": ("llama", {"hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 80}),
}


def found(report: hfgraph.Report) -> int:
    return report.counts.get("rope", 0)


# --- B05: counts are a promise ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "phi3", "qwen3", "gemma2", "cohere", "gpt_oss"])
@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_b05_one_site_for_each_layer(kind: str, layers: int) -> None:
    """Each pairs queries and keys of its own layer."""
    config = {"head_dim": 16} if kind in ("qwen3", "gemma2") else {}
    report = hfgraph.explain(tiny(kind, num_hidden_layers=layers, **config), tokens(2, 11), use_cache=False)
    assert found(report) == layers
    modules = [s.module for s in report.sites if s.rule == "rope" and s.status == "recognised"]
    assert len(set(modules)) == layers and all(str(i) in m for i, m in enumerate(sorted(modules)))


# --- B09: only a part of each head turns --------------------------------------------------------------


@pytest.mark.parametrize("case", PARTIAL)
@torch.no_grad()
def test_b09_partial_rotary(case: str) -> None:
    """Equal at positions 0 to 127: agreement at position 0 would prove nothing."""
    kind, config = PARTIAL[case]
    model, ids = tiny(kind, **config), tokens(1, 128)
    want = model(ids, use_cache=False).logits
    assert_equal(compiled(tiny(kind, **config))(ids, use_cache=False).logits, want, atol=1e-4)
    assert found(hfgraph.last_report()) == model.config.num_hidden_layers
    moved = model(ids, position_ids=torch.arange(128)[None] * 3, use_cache=False).logits
    assert (moved - want).abs().max() > 1e-2, "positions do not matter here"


def test_b09_the_width_comes_from_the_tables() -> None:
    """Heads of 80 of which 20 turn, tables that lie before NaN: none of these is read, and the tail passes."""
    x, wide = torch.randn(2, 3, 5, 80), torch.full((2, 5, 40), float("nan"))
    wide[..., :20] = torch.randn(2, 5, 20)
    cos, sin = (t[None, None, :, :20] for t in wide)
    turned = all_ops()["rotate"](x, cos, sin)
    assert turned.isfinite().all()
    assert torch.equal(turned[..., 20:], x[..., 20:])
    assert (turned[..., :20] != x[..., :20]).any(-1).all()


# --- B11: scaling -------------------------------------------------------------------------------------


@torch.no_grad()
def test_b11_the_models_own_tables_are_used() -> None:
    """The attention factor of a scaled embedding is in its tables, and stays: recognised, and equal."""
    config = {"rope_parameters": YARN}
    ids = tokens(2, 40)
    assert_equal(compiled(tiny("llama", **config))(ids, use_cache=False).logits, tiny("llama", **config)(ids, use_cache=False).logits)
    assert found(hfgraph.last_report()) == 2
    plain = tiny("llama", rope_parameters={**YARN, "attention_factor": 1.0})
    assert (plain(ids, use_cache=False).logits - tiny("llama", **config)(ids, use_cache=False).logits).abs().max() > 1e-2


# --- B14: queries and keys that are views of one projection -------------------------------------------


@pytest.mark.parametrize("name", ["rotate", "rope", "qk_norm_rope"])
def test_b14_strides(name: str) -> None:
    """Views give what their dense copies give."""
    op = all_ops()[name]
    made = op.inputs.make()
    views = {n: strided(a) if isinstance(a, Tensor) and a.ndim > 1 else a for n, a in made.items()}
    for got, want in zip(tree_leaves(op(**views)), tree_leaves(op(**made)), strict=True):
        assert torch.equal(got, want)


def strided(t: Tensor) -> Tensor:
    """The same values with heads and positions swapped in memory, every other one."""
    return torch.stack([t, t], -1)[..., 0].transpose(1, 2).contiguous().transpose(1, 2)


# --- what else looks like it --------------------------------------------------------------------------


class Turns(nn.Module):
    """Two layers whose keys are turned by a table of their own in the second, and a mixture that is no rotation."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, other: Tensor) -> Tensor:
        half = x.shape[-1] // 2

        def turned(t: Tensor, c: Tensor) -> Tensor:
            return t * c + torch.cat((-t[..., half:], t[..., :half]), -1) * sin

        mixed = x * cos + x.roll(1, 2) * sin  # neighbours in time, not in a head
        first = torch.nn.functional.scaled_dot_product_attention(turned(x, cos), turned(mixed, cos), x)
        return torch.nn.functional.scaled_dot_product_attention(turned(first, cos), turned(first.sin(), other), first)


def test_tables_must_be_the_same_and_attention_too() -> None:
    """One pair, and two that stay single: the second layer's keys have another table, and no layer lends to another."""
    args = (torch.randn(2, 2, 5, 8), *(torch.randn(1, 1, 5, 8) for _ in range(3)))
    report = hfgraph.explain(Turns(), *args)
    assert found(report) == 3
    assert sorted(s.node.split("_")[0] for s in report.sites if s.rule == "rope") == ["rope", "rotate", "rotate"]
    assert_equal(compiled(Turns())(*copy.deepcopy(args)), Turns()(*args))


def test_what_only_looks_like_a_rotation_is_left_alone() -> None:
    """Pairs that mix without turning: not what the op computes, and nothing was missed."""

    def function(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + b * sin], -1)

    args = (torch.randn(2, 2, 5, 8), *(torch.randn(1, 1, 5, 4) for _ in range(2)))
    report = hfgraph.explain(function, *args)
    assert found(report) == 0 and not report.near_misses
    assert torch.equal(compiled(function)(*args), function(*args))


def test_a_rotation_that_rounds_otherwise_is_left_alone_with_the_reason() -> None:
    """Its products are rounded before they are added."""

    def function(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return (x * cos).bfloat16() + (torch.cat((-x[..., half:], x[..., :half]), -1) * sin).bfloat16()

    args = (torch.randn(2, 2, 5, 8), *(torch.randn(1, 1, 5, 8) for _ in range(2)))
    report = hfgraph.explain(function, *args)
    assert found(report) == 0
    assert ["rounds or scales in a way that the op does not" in s.reason for s in report.near_misses] == [True]
    assert torch.equal(compiled(function)(*args), function(*args))
