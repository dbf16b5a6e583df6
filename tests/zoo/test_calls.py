"""The ways in which causal models of the zoo are called: prompts padded on the left or right, and steps over a static cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_variants import PLAIN, UNLIMITED
from torch import nn
from transformers import StaticCache
from zoo_cases import CAUSAL, PATIENT, SEED, sample

from hfgraph import zoo

pytestmark = PATIENT

# Two calls of equal inputs on equal models must agree in everything, not-a-number of rows without any key included.
EXACTLY = {"atol": 1e-5, "rtol": 0, "equal_nan": True}


def padded(name: str, side: str) -> dict[str, Any]:
    """Three prompts of 13, 9 and 1 tokens, the rest of their rows padded."""
    inputs = zoo.inputs(name, 3, 13, seed=SEED)
    mask = torch.ones(3, 13, dtype=torch.long)
    for row, real in enumerate((13, 9, 1)):
        pads = slice(0, 13 - real) if side == "left" else slice(real, 13)
        mask[row, pads] = 0
        inputs["input_ids"][row, pads] = 0
    return {**inputs, "attention_mask": mask}


@pytest.mark.parametrize(("name", "side"), [(n, side) for side in ("left", "right") for n in sample(len(CAUSAL) // 12, side)])
@UNLIMITED
@torch.no_grad()
def test_padded_prompts(name: str, side: str) -> None:
    model, inputs = zoo.build(name, seed=SEED), padded(name, side)
    want = without_hfgraph(lambda: zoo.logits(model(**inputs)))
    got = zoo.logits(torch.compile(model, backend="hfgraph", options=PLAIN)(**inputs))
    torch.testing.assert_close(got, want, **EXACTLY)


def steps(model: nn.Module, f: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """Logits of a prompt and of two more tokens, over a static cache."""
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=24)
    ids = inputs.pop("input_ids")
    named = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    rest = {**inputs, "use_cache": True, named: cache}
    return [zoo.logits(f(input_ids=part, **rest)) for part in (ids[:, :11], ids[:, 11:12], ids[:, 12:])]


@pytest.mark.parametrize("name", sample(len(CAUSAL) // 12, "static cache"))
@UNLIMITED
@torch.no_grad()
def test_steps_over_a_static_cache(name: str) -> None:
    model = zoo.build(name, seed=SEED)

    def run(f: Any) -> list[torch.Tensor]:
        torch._dynamo.reset()
        return steps(model, f, zoo.inputs(name, 2, 13, seed=SEED))

    want = without_hfgraph(lambda: run(model))
    try:
        got = run(torch.compile(model, backend="hfgraph", options=PLAIN))
    except torch._dynamo.exc.TorchRuntimeError:
        without_hfgraph(lambda: run(torch.compile(model, backend="eager")))
        raise
    torch.testing.assert_close(got, want, **EXACTLY)


def without_hfgraph(run: Callable[[], Any]) -> Any:
    """What a model gives by itself. A few do not take every call, with torch.compile or without."""
    try:
        return run()
    except (RuntimeError, KeyError) as e:  # of a layer type that StaticCache does not know
        pytest.skip(f"the model does not take this call: {str(e).splitlines()[0]}")
