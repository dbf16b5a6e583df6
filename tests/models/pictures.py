"""How the image-text models of the zoo take images: two of them in one prompt, of different sizes where a model takes such.

`RECIPES` says for each model what its configuration needs to be of use with small images, which arguments carry the images, and
what stands for them among the words.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hfgraph import zoo
from hfgraph.zoo.models import TOKENS, configs

Given = dict[str, Any]
Pixels = Callable[..., Tensor]  # numbers of a shape
SIZE, PATCH = 32, 8
_WORDS, _BETWEEN = 4, 3  # words before the first image, and after each
_KINDS = ("mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids")  # arguments that tell words from images


# Arguments that carry the images.


def squares(config: Any, pixels: Pixels, *, size: int = 0) -> Given:
    """Two images of the size that the tower was made for."""
    size = size or config.vision_config.image_size
    size = size if isinstance(size, int) else size[0]
    return {"pixel_values": pixels(2, 3, size, size)}


def patches(config: Any, pixels: Pixels, *, sides: tuple[tuple[int, int], ...] = ((4, 4), (8, 4)), shape: tuple[int, ...] = ()) -> Given:
    """Rows of patches of all images, and how many patches high and wide these are."""
    vision = config.vision_config
    channels = getattr(vision, "in_channels", getattr(vision, "num_channels", 3))
    frames = getattr(vision, "temporal_patch_size", getattr(vision, "patch_temporal", 1))
    grid = torch.tensor([(1, *s) for s in sides])
    return {"pixel_values": pixels(int(grid.prod(-1).sum()), *(shape or (channels * frames * PATCH**2,))), "image_grid_thw": grid}


def merged_patches(config: Any, pixels: Pixels) -> Given:
    """As many pieces as tokens, each of several patches, with channels last."""
    side = config.vision_config.spatial_merge_size * PATCH
    return {"pixel_values": pixels(4 + 6, side, side, 3), "image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 3]])}


def patches_at_positions(config: Any, pixels: Pixels, *, step: int = 1, side: int = PATCH) -> Given:
    """A batch of patches with places; the second image is half as high, and the rest of its row is padded."""
    width = 2 * step
    places = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(width), indexing="xy"), -1).reshape(1, -1, 2).repeat(2, 1, 1)
    places[1, len(places[1]) // 2 :] = -1
    return {"pixel_values": pixels(2, width**2, 3 * side**2).sigmoid(), "image_position_ids": places}


def patches_with_shapes(config: Any, pixels: Pixels) -> Given:
    """A batch of patches, with the number of rows and columns of each image."""
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 8:] = 0
    return {"pixel_values": pixels(2, 16, 3 * PATCH**2), "spatial_shapes": torch.tensor([[4, 4], [2, 4]]), "pixel_attention_mask": mask}


def patches_with_places_inside(config: Any, pixels: Pixels) -> Given:
    """Row and column are the first two numbers of each patch."""
    places = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).expand(2, -1, -1)
    return {"flattened_patches": torch.cat((places, pixels(2, 16, config.vision_config.patch_embed_hidden_size)), -1)}


def patches_in_a_row(config: Any, pixels: Pixels) -> Given:
    """One image as high as a patch, which holds the patches of all."""
    sides = torch.tensor([[4, 4], [4, 8]])
    return {"pixel_values": pixels(1, 3, PATCH, PATCH * int(sides.prod(-1).sum())), "target_sizes": sides}


def flat_patches(config: Any, pixels: Pixels) -> Given:
    return {"pixel_values": pixels(1, 16 + 8, 3 * PATCH**2)}


def padded(config: Any, pixels: Pixels, *, side: int = SIZE) -> Given:
    """Two images, the second one half as high as its tensor."""
    return {"pixel_values": pixels(2, 3, side, side), "image_sizes": torch.tensor([[side, side], [side // 2, side]])}


def masked(config: Any, pixels: Pixels, *, mask: str = "pixel_attention_mask", each: bool = False) -> Given:
    """Two images of one prompt, the second one half as wide as its tensor."""
    seen = torch.ones(2, SIZE, SIZE, dtype=torch.bool)
    seen[1, :, SIZE // 2 :] = False
    values = pixels(2, 3, SIZE, SIZE) * seen[:, None]
    return {"pixel_values": values if each else values[None], mask: seen if each else seen[None]}


def tiles(config: Any, pixels: Pixels) -> Given:
    """An overview of each image and tiles of it, and how large it was: one is cut into two tiles, one into four."""
    return {"pixel_values": pixels(2, 5, 3, SIZE, SIZE), "image_sizes": torch.tensor([[SIZE, 2 * SIZE], [2 * SIZE, 3 * SIZE // 2]])}


def views(config: Any, pixels: Pixels, *, grid: bool = False) -> Given:
    """An overview of each image; details of the first in one tile, of the second in two."""
    found = {"pixel_values": pixels(2, 3, SIZE, SIZE), "pixel_values_local": pixels(3, 3, SIZE, SIZE).flip(0), "num_local_patches": [1, 2]}
    return {**found, "patches_grid": [[1, 1], [2, 1]]} if grid else found


def tiles_of_one_image(config: Any, pixels: Pixels) -> Given:
    return {"pixel_values": pixels(1, 3, 3, SIZE, SIZE), "pixel_attention_mask": torch.ones(1, 3, dtype=torch.bool)}


def tiles_with_ratios(config: Any, pixels: Pixels) -> Given:
    """Up to four tiles of each image; the first one has one, the second one two by two."""
    real = torch.tensor([[[1, 0, 0, 0], [1, 1, 1, 1]]])
    values = pixels(1, 2, 4, 3, SIZE, SIZE) * real[..., None, None, None]
    return {"pixel_values": values, "aspect_ratio_ids": torch.tensor([[1, 6]]), "aspect_ratio_mask": real}


def pooled_crops(config: Any, pixels: Pixels) -> Given:
    """Two crops of each image as patches, and which patches become one token: four of a crop, or two at its edge."""
    crop = torch.arange(16).reshape(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
    pooling = torch.cat((crop, crop + 16, crop[:2] + 32, crop + 48))
    pooling[8:10, 2:] = -1
    return {"pixel_values": pixels(4, 16, 3 * PATCH**2), "image_token_pooling": pooling, "image_grids": torch.tensor([[2, 2, 2, 2], [1, 2, 2, 2]])}


def in_two_resolutions(config: Any, pixels: Pixels) -> Given:
    return {"pixel_values": pixels(2, 3, SIZE, SIZE), "high_res_pixel_values": pixels(2, 3, SIZE, SIZE).flip(0)}


def with_merge_sizes(config: Any, pixels: Pixels) -> Given:
    return {**patches(config, pixels), "image_merge_sizes": torch.tensor([2, 1])}


def of_one_prompt(config: Any, pixels: Pixels) -> Given:
    return {"pixel_values": pixels(1, 2, 3, SIZE, SIZE)}


# What stands among the words.


def words(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(*TOKENS, shape, generator=torch.Generator().manual_seed(seed))


def prompt(token: int, counts: list[int], marks: tuple[int, ...] = ()) -> Tensor:
    """Four words, then each image's tokens, between marks if there are such, and three words more."""
    text = words(_WORDS + _BETWEEN * len(counts)).tolist()
    ids = text[:_WORDS]
    for i, count in enumerate(counts):
        image = [token] * count
        ids += [marks[0], *image, marks[1]] if marks else image
        ids += text[_WORDS + _BETWEEN * i :][:_BETWEEN]
    return torch.tensor([ids])


def placeholders(model: Any, images: Given, *, marks: tuple[str, ...] = ()) -> Given:
    """As many tokens as the model makes of each image; where it asks which tokens these are, the answer."""
    token = model.config.image_token_id if hasattr(model.config, "image_token_id") else model.model.vocabulary_mapping.image_token_id
    ids = prompt(token, tokens_of(model, images), tuple(getattr(model.config, m) for m in marks))
    asked = inspect.signature(model.forward).parameters
    return {"input_ids": ids, **{kind: (ids == token).int() for kind in _KINDS if kind in asked}}


def tokens_of(model: nn.Module, images: Given) -> list[int]:
    """How many tokens the model makes of each image."""
    maker: Any = next(m for m in model.modules() if hasattr(m, "get_image_features"))
    found = maker.get_image_features(**images)
    features = found.last_hidden_state if found.pooler_output is None else found.pooler_output
    rows = [features] if isinstance(features, Tensor) and features.ndim == 2 else features
    return [f.shape[:-1].numel() for f in rows]


def prefix_and_suffix(model: Any, images: Given) -> Given:
    """What is to be read, images and words, and what is written after it."""
    found = placeholders(model, images)
    kinds = torch.zeros_like(found["input_ids"])
    kinds[:, -_BETWEEN:] = 1
    return {**found, "token_type_ids": kinds}


def with_decoder(model: Any, images: Given) -> Given:
    return {**placeholders(model, images), "decoder_input_ids": words(1, 6, seed=1)}


def a_mask_of_places(model: Any, images: Given) -> Given:
    """A mask says where images stand."""
    ids = prompt(TOKENS[1], tokens_of(model, images))  # a token that is no word
    return {"input_ids": ids, "image_embeds_position_mask": (ids == TOKENS[1]).long()}


def words_that_see_images(model: Any, images: Given, *, name: str = "cross_attention_mask", tiles: tuple[int, ...] = (4,)) -> Given:
    """Images stand beside the words: those at the front see none, then come those of the first, and then of both."""
    seen = torch.ones(1, 8, 2, *tiles, dtype=torch.long)
    seen[:, :2], seen[:, :5, 1] = 0, 0
    return {"input_ids": words(1, 8), name: seen}


def words_after_images(model: Any, images: Given) -> Given:
    return {"input_ids": words(1, 8)}


def words_for_each(model: Any, images: Given) -> Given:
    """Two prompts with an image each."""
    return {"input_ids": words(2, 8)}


def captions(model: Any, images: Given) -> Given:
    """The images are all that is read; two captions are written."""
    return {"decoder_input_ids": words(2, 8)}


def words_on_a_page(model: Any, images: Given) -> Given:
    """Two pages, with the place of each word."""
    corner = torch.rand(2, 8, 2, generator=torch.Generator().manual_seed(2)) / 2
    return {"input_ids": words(2, 8), "bbox": torch.cat((corner, corner + 0.3), -1), "decoder_input_ids": words(2, 6, seed=1)}


@dataclass(frozen=True)
class Recipe:
    """How a model takes images."""

    images: Callable[[Any, Pixels], Given] = squares
    among: Callable[[Any, Given], Given] = placeholders
    config: Mapping[str, Any] = field(default_factory=dict)


def build(name: str, recipe: Recipe, seed: int = 1) -> nn.Module:
    """The model of the zoo, with what the recipe changes in its configuration."""
    return zoo.build(name, seed, **_changed(configs()[name]["overrides"], recipe.config))


def _changed(old: Any, new: Any) -> Any:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    return {key: _changed(old.get(key), value) if key in old else value for key, value in new.items()} | {k: v for k, v in old.items() if k not in new}


@torch.no_grad()
def given(model: nn.Module, recipe: Recipe, seed: int = 1) -> Given:
    """Arguments of one call with images; another seed changes nothing but the pixels."""
    generator = torch.Generator().manual_seed(seed)
    images = recipe.images(model.config, partial(torch.randn, generator=generator))
    return {**images, **recipe.among(model, images), "use_cache": False}
