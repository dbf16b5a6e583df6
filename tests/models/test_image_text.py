"""Image-text models with images: two of them in one prompt, of different sizes where a model takes such.

Of all models a sample runs, another with another `HFGRAPH_SEED`, and those of a special kind; with `HFGRAPH_ALL_IMAGES=1` all do.
What they compute with words alone is in tests/zoo/test_coverage.py. Where a change of the table is meant,
`python tests/models/image_records.py NAME ...` writes it.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import torch
from image_records import PATCHES, TABLE, logits, one_graph, rewritten, see
from picture_recipes import RECIPES, UNTRACEABLE, WITHOUT
from pictures import build, given
from torch import Tensor, nn

from hfgraph import zoo
from hfgraph.zoo.expected import KINDS
from hfgraph.zoo.record import TOLERANCE, Record, farthest
from hfgraph.zoo.table import Coverage

SEED = int(os.environ.get("HFGRAPH_SEED", "1"))
KNOWN = Coverage.load(TABLE)
# Windows, tiles, images beside the words, pooled crops, places of patches, masked patches, packed images, several tokens for a patch.
SPECIAL = ("qwen2_5_vl", "llava_next", "mllama:vlm", "molmo2", "gemma4", "idefics2", "lfm2_vl", "mistral3", "minicpmv4_7")
SLOW = ("glm5_next", "qwen4_exp:vlm", "step3p7")  # dozens of graphs; only among all
OTHERS = sorted(set(RECIPES) - set(SPECIAL) - set(SLOW))
CHOSEN = sorted(RECIPES) if os.environ.get("HFGRAPH_ALL_IMAGES") else sorted({*SPECIAL, *random.Random(f"{SEED} images").sample(OTHERS, 5)})
# What the masks of all attentions allow, of the tower first, counted by call.
_PLAIN = {"full": 2, "causal": 2}
_TWICE = {"full": 4, "causal": 2}  # the tower attends within each image
_WINDOW = {"full": 2, "sliding window of 8": 1, "causal": 1}
_BIAS = {"full, bias as a tensor": 2, "causal": 2}  # relative positions in two dims; images in one row
MASKS: dict[str, dict[str, int]] = {
    **dict.fromkeys(("deepseek_vl", "internvl", "llava", "llava_next", "ovis2"), _PLAIN),
    **dict.fromkeys(("glm4v", "minimax_m3_vl", "qwen2_vl", "qwen3_vl"), _TWICE),
    **dict.fromkeys(("aya_vision", "lfm3_vl"), _WINDOW),
    **dict.fromkeys(("got_ocr2", "mistral3"), _BIAS),
    "gemma4": {"full, padding as a tensor": 2, "sliding window of 8": 2, "causal": 1},
    "idefics2": {"full, padding as a tensor": 5, "sliding window of 8": 2},
    "lfm2_vl": {"full, padding as a tensor": 3, "causal": 2},
    "minicpmv4_7": {"full": 16, "causal": 1},
    "mllama:vlm": {"full, bias as a tensor": 5, "causal": 1},
    "molmo2": {"full": 2, "full, padding as a tensor": 1, "full, mask as a tensor": 2},
    "qwen2_5_vl": {"full": 9, "causal": 2},  # within each window
}
# A matmul of patches adds in another order than a convolution, and some models amplify that. No more than so much; and without it, within TOLERANCE.
AMPLIFIED = 5e-5
pytestmark = [
    # Dynamo itself, where a model calls a custom autograd function or masked_scatter.
    pytest.mark.filterwarnings("ignore:.*torch.autograd.function.Function.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin:UserWarning"),
]


@pytest.mark.parametrize("name", CHOSEN)
@torch.no_grad()
def test_two_images(name: str) -> None:
    """Logits are eager's, for other pixels too; what eager computes is found, as the table says; and the images matter."""
    model = build(name, RECIPES[name], SEED)
    inputs, others = given(model, RECIPES[name]), given(model, RECIPES[name], seed=2)
    seen = see(name, model, inputs)
    check(name, model, inputs, seen.got, seen.want)
    assert told(seen.record) == told(KNOWN.records[name])
    assert name not in MASKS or seen.attends == MASKS[name]
    with one_graph(name):
        got, want = logits(seen.f, others), logits(model, others)
    check(name, model, others, got, want)
    assert farthest(want, seen.want) > 100 * TOLERANCE


def told(record: Record) -> dict[str, Any]:
    """What does not depend on seed and machine. Where a model breaks may depend on values."""
    missed = sorted((m.kind, m.module, m.count, m.reason) for m in record.missed)
    return {"expected": record.expected, "found": record.found, "missed": missed, "in one graph": record.graphs == 1}


def check(name: str, model: nn.Module, inputs: dict[str, Any], got: Tensor, want: Tensor) -> None:
    """Equal to eager, but for what the order of a sum does where patches are multiplied."""
    if farthest(got, want) > TOLERANCE:
        torch.testing.assert_close(got, want, atol=AMPLIFIED, rtol=0)
        f, report = rewritten(model, disable=frozenset({"patch_embedding"}))
        with one_graph(name):
            got = logits(f, inputs)
        assert "patch_embedding" not in report.counts
    torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)


def test_the_table_has_every_model_and_no_other() -> None:
    assert sorted(KNOWN.records) == sorted(RECIPES)
    assert sorted([*RECIPES, *UNTRACEABLE, *WITHOUT]) == sorted(zoo.names("vlm"))


@pytest.mark.parametrize("name", WITHOUT)
def test_models_without_images(name: str) -> None:
    """They have no tower, as is said of them."""
    assert not any(hasattr(m, "get_image_features") for m in zoo.build(name).modules())


@pytest.mark.parametrize("name", UNTRACEABLE)
@torch.no_grad()
def test_what_dynamo_cannot_trace(name: str) -> None:
    """If it can, the model belongs to the others."""
    model = build(name, UNTRACEABLE[name], SEED)
    inputs = given(model, UNTRACEABLE[name])
    assert logits(model, inputs).isfinite().all()
    with pytest.raises(torch._dynamo.exc.TorchRuntimeError):
        torch.compile(model, backend="eager")(**inputs)


def test_the_shares_that_are_promised() -> None:
    """Of what these models compute with images, where they trace in one graph. Between graphs run Python's loops over images, and what is in them."""
    for kind in (*KINDS, PATCHES):
        share = KNOWN.share(kind)
        assert share.found >= 0.95 * share.expected > 0, f"{kind}: {share}"
    for kind in ("norm", "rope", "attention", "glu"):
        share = KNOWN.share(kind, one_graph=False)
        assert share.found >= 0.95 * share.expected > 0, f"{kind}: {share}"
    assert all(m.reason for r in KNOWN.records.values() for m in r.missed)
