"""Image-text models with images: two of them in one prompt, of different sizes where a model takes such; and without any."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any

import pytest
import torch
from recipes import PLAIN, assert_equal
from torch import Tensor, nn

import hfgraph
from hfgraph import zoo

# Attentions of the vision tower and of the text model, and what their masks are.
FIXED = {
    "llava": {"full": 2, "causal": 2},
    "internvl": {"full": 2, "causal": 2},
    "aya_vision": {"full": 2, "sliding window of 8": 1, "causal": 1},
    "got_ocr2": {"full, bias as a tensor": 2, "causal": 2},  # relative positions in two dims
    "deepseek_vl": {"full": 2, "causal": 2},
    "ovis2": {"full": 2, "causal": 2},
}
# Towers that take patches of images of any size, with rotations in two dims, and positions in three for the text.
PACKED = {
    "qwen2_vl": {"full": 2, "causal": 2},
    "qwen3_vl": {"full": 2, "causal": 2},
    "glm4v": {"full": 2, "causal": 2},
    "minimax_m3_vl": {"full": 2, "causal": 2},
    "lfm3_vl": {"full": 2, "sliding window of 8": 1, "causal": 1},
}
LINEAR = ("lfm3_vl",)  # takes patches by a linear layer
# After graph breaks Dynamo compiles a function anew for each size; its limit would hand the rest to eager.
UNLIMITED = torch._dynamo.config.patch(recompile_limit=10_000, accumulated_recompile_limit=10_000)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def prompt(token: int, counts: list[int]) -> Tensor:
    """Four words, then each image's tokens and three words more."""
    words = torch.randint(*zoo.models.TOKENS, (4 + 3 * len(counts),), generator=torch.Generator().manual_seed(0)).tolist()
    ids = words[:4]
    for i, count in enumerate(counts):
        ids += [token] * count + words[4 + 3 * i : 7 + 3 * i]
    return torch.tensor([ids])


def images_of_one_size(model: Any) -> dict[str, Any]:
    size = model.config.vision_config.image_size
    size = size if isinstance(size, int) else size[0]
    pixels = numbers(2, 3, size, size)
    found = model.model.get_image_features(pixels)
    features = getattr(found, "pooler_output", found)
    return {"input_ids": prompt(model.config.image_token_id, [len(features[0])] * 2), "pixel_values": pixels}


def images_as_patches(model: Any) -> dict[str, Any]:
    vision = model.config.vision_config
    merge, channels = vision.spatial_merge_size, getattr(vision, "in_channels", 3)
    grid = torch.tensor([[1, 4, 4], [1, 2 * merge, 4]])
    patches = int(grid.prod(-1).sum())
    ids = prompt(model.config.image_token_id, (grid.prod(-1) // merge**2).tolist())
    given = {"input_ids": ids, "pixel_values": numbers(patches, channels * vision.temporal_patch_size * vision.patch_size**2), "image_grid_thw": grid}
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        given["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    return given


def given(name: str, model: nn.Module) -> dict[str, Any]:
    return {**(images_of_one_size if name in FIXED else images_as_patches)(model), "use_cache": False}


@pytest.mark.parametrize("name", [*FIXED, *PACKED])
@UNLIMITED
@torch.no_grad()
def test_two_images(name: str) -> None:
    model = zoo.build(name, 1)
    inputs = given(name, model)
    f = torch.compile(model, backend="hfgraph", options=PLAIN)
    want = model(**inputs).logits
    assert_equal(f(**inputs).logits, want)
    assert hfgraph.last_report().counts.get("patch_embedding", 0) == (name not in LINEAR)
    found = Counter(s.note for s in hfgraph.last_report().sites if s.rule == "attention" and s.status == "recognised")
    assert found == {**FIXED, **PACKED}[name]
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(0)}
    assert_equal(f(**other).logits, model(**other).logits)
    assert (model(**other).logits - want).abs().max() > 1e-3  # the images matter


@pytest.mark.parametrize("name", [*FIXED, *PACKED])
@torch.no_grad()
def test_words_alone(name: str) -> None:
    model = zoo.build(name, 1)
    inputs = {"input_ids": prompt(0, [])[:, :4], "use_cache": False}
    assert_equal(torch.compile(model, backend="hfgraph", options=PLAIN)(**inputs).logits, model(**inputs).logits)
    assert hfgraph.last_report().counts["attention"] == 2
