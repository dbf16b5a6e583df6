"""Hugging Face's processors on small generated images, and what they give to the models: logits and generated tokens are eager's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from picture_recipes import RECIPES
from pictures import build
from recipes import PLAIN, assert_equal
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

import hfgraph

Processor = Callable[..., Mapping[str, Any]]
SIZES = ((40, 56), (70, 24))  # height and width of two images
SIDE = {"height": 32, "width": 32}


def photo(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tokenizer(**special: int) -> PreTrainedTokenizerFast:
    """A word for each id, and tokens with a meaning of their own."""
    taken = set(special.values())
    inner = Tokenizer(WordLevel({**{f"w{i}": i for i in range(128) if i not in taken}, **special}, unk_token="w3"))
    inner.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    inner.add_special_tokens([AddedToken(word, normalized=False) for word in special])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="w0")


def llava() -> Processor:
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIDE)
    words = tokenizer(**{"<image>": 127})
    return transformers.LlavaProcessor(images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1)


def llava_next() -> Processor:
    images = transformers.LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIDE, image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]])
    words = tokenizer(**{"<image>": 127})
    return transformers.LlavaNextProcessor(images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1)


def idefics3() -> Processor:
    images = transformers.Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    names = ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *(f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2))]
    return transformers.Idefics3Processor(images, tokenizer(**{word: 127 - i for i, word in enumerate(names)}), image_seq_len=4)


def mistral3() -> Processor:
    """Its processor asks for torchvision, its image processor does not; rows of tokens end with a mark."""
    images = transformers.PixtralImageProcessorPil(patch_size={"height": 16, "width": 16}, size={"longest_edge": 48})
    return ByHand(images, tokenizer(**{"[IMG]": 127, "[IMG_BREAK]": 126, "[IMG_END]": 125}), "[IMG]", _rows)


def qwen2_5_vl() -> Processor:
    """Its processor asks for a video processor, and that for torchvision."""
    images = transformers.Qwen2VLImageProcessorPil(patch_size=8, size={"shortest_edge": 256, "longest_edge": 4096})
    return ByHand(
        images, tokenizer(**{"<|image_pad|>": 127}), "<|image_pad|>", lambda found, i: ["<|image_pad|>"] * int(found["image_grid_thw"][i].prod() // 4)
    )


def _rows(found: Mapping[str, Any], i: int) -> list[str]:
    height, width = (int(n) // 16 for n in found["image_sizes"][i])
    rows = (["[IMG]"] * width + ["[IMG_BREAK]"]) * height
    return [*rows[:-1], "[IMG_END]"]


@dataclass(frozen=True)
class ByHand:
    """An image processor and a tokenizer, with what stands for an image in the text."""

    image_processor: Any
    tokenizer: PreTrainedTokenizerFast
    image_token: str
    spelled: Callable[[Mapping[str, Any], int], list[str]]

    def __call__(self, *, images: list[np.ndarray], text: str, return_tensors: str) -> dict[str, Any]:
        found = dict(self.image_processor(images, return_tensors=return_tensors))
        first, *others = text.split(self.image_token)
        words = self.tokenizer(first + "".join(" ".join(self.spelled(found, i)) + part for i, part in enumerate(others)), return_tensors=return_tensors)
        kinds = {"mm_token_type_ids": (words["input_ids"] == 127).int()} if "image_grid_thw" in found else {}
        return {**found, **words, **kinds}


PROCESSORS: dict[str, Callable[[], Processor]] = {f.__name__: f for f in (llava, llava_next, mistral3, idefics3, qwen2_5_vl)}


def processed(name: str) -> dict[str, Any]:
    """Two images of different sizes in one prompt."""
    processor: Any = PROCESSORS[name]()
    text = f"w5 w6 {processor.image_token} w7 w8 {processor.image_token} w9 w10"
    images = [photo(*size, seed=i) for i, size in enumerate(SIZES)]
    return dict(processor(images=images, text=text, return_tensors="pt"))


@pytest.mark.parametrize("name", PROCESSORS)
@torch.no_grad()
def test_a_processor_with_a_model(name: str) -> None:
    model, inputs = build(name, RECIPES[name]), processed(name)
    f = torch.compile(model, backend="hfgraph", options=PLAIN)
    want = model(**inputs, use_cache=False).logits
    assert_equal(f(**inputs, use_cache=False).logits, want)
    assert hfgraph.last_report().counts["patch_embedding"] == 1
    assert inputs["input_ids"].shape == want.shape[:2]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@torch.no_grad()
def test_generate_from_images(name: str) -> None:
    """Images are read once, with the prompt; decoding goes on with words alone."""
    model: Any = build(name, RECIPES[name])
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    inputs = processed(name)
    want = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    model.compile(backend="hfgraph", options=PLAIN)
    got = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(got, want) and got.shape[1] == inputs["input_ids"].shape[1] + 4
    assert hfgraph.last_report().counts["attention"] > 0
