"""LayerNorm: what is one and what only looks like it, branches side by side, and multiples of what is added to a residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captured import find, ops, same, traced
from torch import Tensor
from torch.fx import GraphModule

import hfgraph
from hfgraph import zoo
from hfgraph.options import Options
from hfgraph.pipeline import PIPELINE, Context, run

D = 8


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rewritten(function: Callable[..., Any], *args: Tensor) -> GraphModule:
    """The function's graph after all passes; it must give what the function gives, bit for bit."""
    gm = traced(function, *args)
    run(gm, Context(Options()), PIPELINE)
    assert same(gm(*args), function(*args))
    return gm


# --- what is one, and what is not ----------------------------------------------------------------------


def spelled(x: Tensor, dim: int = -1) -> Tensor:
    centred = x - x.mean(dim, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean(dim, keepdim=True) + 1e-5)


def test_a_norm_of_centred_values_is_no_rms_norm() -> None:
    x, w, b = numbers(3, 5, D, dtype=torch.bfloat16), numbers(D, seed=1), numbers(D, seed=2)
    assert ops(rewritten(lambda x, w, b: (spelled(x.float()) * w + b).to(x.dtype), x, w, b)) == ["layer_norm"]
    # The values are centred by another mean than their own: an RMSNorm of a difference.
    other = rewritten(
        lambda x, y: (h := x - y.mean(-1, keepdim=True)) * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5), numbers(3, D), numbers(3, D, seed=1)
    )
    assert ops(other) == ["mean", "sub", "rms_norm"]


LOOK_ALIKE: dict[str, Callable[[Tensor], Tensor]] = {
    "over two dims": lambda x: F.layer_norm(x, x.shape[-2:]),
    "over channels": lambda x: spelled(x, 1),
    "unbiased variance": lambda x: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-5),
    "eps outside the root": lambda x: (h := x - x.mean(-1, keepdim=True)) / (torch.sqrt(h.pow(2).mean(-1, keepdim=True)) + 1e-5),
    "deviation of other values": lambda x: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5),
}


@pytest.mark.parametrize("name", LOOK_ALIKE)
def test_what_only_looks_like_one_is_left_alone(name: str) -> None:
    gm = rewritten(LOOK_ALIKE[name], numbers(3, 5, D))
    assert not [n for n in gm.graph.nodes if getattr(n.target, "namespace", "") == "hfgraph"]


def test_scale_and_shift_that_are_computed_are_no_weight_and_bias() -> None:
    """An adaptive norm: its scale and shift belong to the sample, not to the model."""

    def adaptive(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return spelled(x) * (1 + scale) + shift

    gm = rewritten(adaptive, numbers(3, 5, D), numbers(3, 1, D, seed=1), numbers(3, 1, D, seed=2))
    assert ops(gm) == ["layer_norm", "add", "mul", "add"]
    assert ops(rewritten(adaptive, numbers(3, 5, D), numbers(D, seed=1), numbers(D, seed=2))) == ["layer_norm"]


# --- branches side by side -----------------------------------------------------------------------------


def _branches(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return F.layer_norm(x, (D,), w).sin(), F.layer_norm(x, (D,), w.flip(0)).cos()


ORDERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "branches first": lambda x, a, m: (m + a) + x,
    "one after the other": lambda x, a, m: (x + a) + m,
    "residual last": lambda x, a, m: x + (m + a),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_that_feeds_the_norm_is_fused(order: str, dtype: torch.dtype) -> None:
    """Of the two additions of a parallel block the last one; it feeds both norms of the next block and goes on as the residual."""

    def block(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        attended, gated = _branches(x, w)
        h = ORDERS[order](x, attended, gated)
        return *_branches(h, w), h

    gm = rewritten(block, numbers(3, 5, D, dtype=dtype), numbers(D, dtype=dtype, seed=1))
    fused = find(gm, "add_layer_norm")
    assert [n for n in ops(gm) if "add" in n or "norm" in n] == ["layer_norm", "layer_norm", "add", "add_layer_norm", "layer_norm"]
    assert find(gm, "add") in fused.args[:2]
    total = next(u for u in fused.users if u.args[1] == 1)
    assert {n.op for n in total.users} == {"call_function", "output"} and find(gm, "layer_norm", 2).args[0] is total


# Model -> LayerNorms or RMSNorms in it, of these fused with a sum, and of these with a multiplier. A sum that broadcasts is not fused.
MODELS = {
    "gpt_neox": ("layer_norm", 5, 2, 0),
    "gptj": ("layer_norm", 3, 2, 0),
    "cohere": ("layer_norm", 3, 2, 0),
    "falcon": ("layer_norm", 3, 2, 0),
    "bert:mlm": ("layer_norm", 6, 4, 0),
    "granite": ("rms_norm", 5, 4, 4),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_in_models(name: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    extra = {"residual_multiplier": 0.22} if name == "granite" else {}
    model, inputs = zoo.build(name, seed=1, **extra).to(dtype), zoo.inputs(name, 2, 13, seed=1)
    want = zoo.logits(model(**inputs))
    # An attention without the repetition of its heads adds in another order.
    options = {"inductor": False, "strict": True, "disable": ["attention"]}
    got = zoo.logits(torch.compile(model, backend="hfgraph", options=options)(**inputs))
    assert torch.equal(got, want)
    op, norms, fused, multiplied = MODELS[name]
    counts = hfgraph.last_report().counts
    found = {k: v for k, v in counts.items() if "norm" in k}
    expected = {op: norms, f"add_{op}": fused, f"add_{op}_multiplier": multiplied}
    assert found == {k: v for k, v in expected.items() if v}


# --- a multiple of what is added -----------------------------------------------------------------------


@pytest.mark.parametrize("norm", [F.rms_norm, F.layer_norm])
@pytest.mark.parametrize("first", [False, True])
def test_the_product_is_rounded_before_it_is_added(norm: Callable[..., Tensor], first: bool) -> None:
    """In bfloat16 a sum that took the exact product would differ: so equality means the rounding point is kept."""

    def block(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = x * 0.22 + residual if first else residual + x * 0.22
        return norm(total, (D,), eps=1e-5), total

    x, residual = numbers(30, D, dtype=torch.bfloat16), numbers(30, D, dtype=torch.bfloat16, seed=1)
    gm = rewritten(block, x, residual)
    op = f"add_{norm.__name__}"
    assert [n for n in ops(gm) if n != "getitem"] == [op]
    assert 0.22 in find(gm, op).args and list(find(gm, op).args[:2]) == list(gm.graph.find_nodes(op="placeholder"))
    assert not torch.equal(block(x, residual)[1], (x.float() * 0.22 + residual.float()).bfloat16())


def test_a_product_that_something_else_needs_is_computed_once() -> None:
    def block(x: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
        scaled = x * 0.22
        return F.layer_norm(residual + scaled, (D,)), scaled.sin()

    assert [n for n in ops(rewritten(block, numbers(3, D), numbers(3, D, seed=1))) if n != "getitem"] == ["mul", "add_layer_norm", "sin"]
