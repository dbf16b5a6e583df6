"""Mixtures of experts as `transformers` runs them: each implementation, float32 and bfloat16, growing inputs, and `generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recipes import PLAIN, assert_equal, build, compiled, tokens

import hfgraph

# transformers caches its look-up of versions; tracing through the cache is right.
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`-wrapped function:UserWarning")
MODELS = {"mixtral": 2, "gpt_oss": 2, "nemotron_h": 1}


def notes() -> list[str]:
    return [s.note for s in hfgraph.last_report().sites if s.rule == "moe" and s.status == "recognised"]


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_both_implementations_are_recognised(name: str, implementation: str) -> None:
    model = build(name)
    model.config._experts_implementation = implementation
    f = compiled(model, dynamic=True)
    for length in (9, 4):
        ids = tokens(2, length, seed=length)
        assert_equal(f(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
    assert len(notes()) == MODELS[name] and all(n.startswith("4 experts, top-2") for n in notes())


@torch.no_grad()
def test_a_loop_over_experts_is_left_to_the_model() -> None:
    model = build("mixtral")
    model.config._experts_implementation = "eager"
    ids = tokens(1, 5)
    with torch._dynamo.config.patch(recompile_limit=100):
        assert_equal(compiled(model)(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
    report = hfgraph.explain(model, ids, use_cache=False)
    assert "moe" not in report.counts and report.graph_breaks


@pytest.mark.parametrize("kernel", ["reference", "cpp"])
@torch.no_grad()
def test_bfloat16_is_no_further_from_float64_than_eager(kernel: str) -> None:
    model, ids = build("gpt_oss").bfloat16(), tokens(2, 11)
    eager = model(ids, use_cache=False).logits
    got = compiled(model, options={**PLAIN, "kernels": {"moe": kernel, "attention": "reference"}})(ids, use_cache=False).logits
    model.config._experts_implementation = "batched_mm"  # ATen's grouped product has no float64
    exact = model.double()(ids, use_cache=False).logits
    error, allowed = ((t.double() - exact).square().mean().sqrt() for t in (got, eager))
    assert len(notes()) == 2 and error <= 1.1 * allowed


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
@torch.no_grad()
def test_generate(implementation: str) -> None:
    model, ids = build("mixtral"), tokens(1, 6)
    model.config._experts_implementation = implementation
    how: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    want = model.generate(ids, **how)
    model.compile(backend="hfgraph", options=PLAIN, dynamic=True)
    assert torch.equal(model.generate(ids, **how), want)
    assert len(notes()) == 2
