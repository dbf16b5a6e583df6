"""The image-text models of the zoo with how they take images, and those that cannot take any."""

from __future__ import annotations

from functools import partial
from typing import Any

from pictures import (
    Recipe,
    a_mask_of_places,
    captions,
    flat_patches,
    in_two_resolutions,
    masked,
    merged_patches,
    of_one_prompt,
    padded,
    patches,
    patches_at_positions,
    patches_in_a_row,
    patches_with_places_inside,
    patches_with_shapes,
    placeholders,
    pooled_crops,
    prefix_and_suffix,
    squares,
    tiles,
    tiles_of_one_image,
    tiles_with_ratios,
    views,
    with_decoder,
    with_merge_sizes,
    words_after_images,
    words_for_each,
    words_on_a_page,
    words_that_see_images,
)


def _vision(**changes: Any) -> dict[str, Any]:
    return {"vision_config": changes}


_SMALL = _vision(image_size=[32, 32], patch_size=[8, 8])
_FOUR_TOKENS = {"mm_tokens_per_image": 4}
# Layers with and without windows: two by two tokens, of two by two patches each.
_WINDOWS = partial(patches, sides=((8, 8), (4, 12)))
_WITH_WINDOWS = _vision(window_size=32, fullatt_block_indexes=[1])
_DEEPSTACK = Recipe(patches, config=_vision(deepstack_visual_indexes=[0]))
_TOWER = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
_SAM = {"downsample_channels": [32, 64], "window_size": 3, "global_attn_indexes": [1]}
_PINPOINTS = {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}
_MARKED = partial(placeholders, marks=("vision_start_token_id", "vision_end_token_id"))
_OMNI = {"vision_start_token_id": 121, "vision_end_token_id": 120}
_MUSE = {"out_hidden_size": 256, **_vision(pos_emb_height=4, pos_emb_width=4)}
_MINICPM = {"image_token_id": 127, "vision_config": {"insert_layer_id": 0}}

RECIPES: dict[str, Recipe] = {
    "aria": Recipe(partial(masked, mask="pixel_mask", each=True), config={"projector_patch_to_query_dict": {"16": 8}}),
    "aya_vision": Recipe(),
    "blip": Recipe(among=words_for_each),
    "chameleon": Recipe(
        partial(squares, size=8),
        config={"vocabulary_map": {"<image>": 120, **{f"IMGIMG{c}Z": 100 + i for i, c in enumerate("ABCDEFGH")}}, "vq_config": {"num_embeddings": 8}},
    ),
    "cohere2_vision": Recipe(),
    "cohere_compass": _DEEPSTACK,
    "cosmos3_edge": Recipe(patches),
    "cosmos3_omni": _DEEPSTACK,
    "deepseek_ocr2": Recipe(views, config=_vision(sam_config=_SAM)),
    "deepseek_vl": Recipe(),
    "deepseek_vl_hybrid": Recipe(in_two_resolutions, config={"high_res_vision_config": {"window_size": 3, "global_attn_indexes": [1]}}),
    "diffusion_gemma": Recipe(partial(patches_at_positions, step=3)),
    "dots3_note:vlm": Recipe(patches),
    "emu3:vlm": Recipe(
        partial(padded, side=8),
        config={
            "vocabulary_map": {"<image>": 120, "<|extra_200|>": 121, **{f"<|visual token {i:06}|>": 100 + i for i in range(8)}},
            "vq_config": {"codebook_size": 8},
        },
    ),
    "ernie4_5_vl_moe": Recipe(patches),
    "exaone4_5": Recipe(_WINDOWS, config=_WITH_WINDOWS),
    "florence2": Recipe(
        partial(squares, size=32),
        with_decoder,
        _vision(
            depths=[1, 1], patch_size=[7, 3], patch_stride=[4, 2], patch_padding=[3, 1], patch_prenorm=[False, True],
            embed_dim=[32, 64], num_heads=[2, 4], num_groups=[2, 4], window_size=3,
        ),
    ),
    "fuyu": Recipe(flat_patches),
    "gemma3": Recipe(config=_FOUR_TOKENS),
    "gemma4": Recipe(
        partial(patches_at_positions, step=2),
        config=_vision(model_type="gemma4_vision", pooling_kernel_size=2, position_embedding_size=64, patch_size=8, **_TOWER),
    ),
    "gemma4_unified": Recipe(
        partial(patches_at_positions, step=2),
        config=_vision(model_type="gemma4_unified_vision", patch_size=4, pooling_kernel_size=2, mm_embed_dim=64, mm_posemb_size=16, output_proj_dims=64),
    ),
    "git": Recipe(of_one_prompt, words_after_images, {"num_image_with_embedding": 2}),
    "glm46v": Recipe(patches),
    "glm4v": Recipe(patches),
    "glm4v_moe": Recipe(patches),
    "glm5_next": Recipe(patches),
    "glm_ocr": Recipe(patches),
    "glmga": Recipe(patches),
    "got_ocr2": Recipe(config=_vision(window_size=3, global_attn_indexes=[1])),
    "granite_docling": Recipe(tiles_of_one_image),
    "hunyuan_vl": Recipe(patches),
    "hy_v4_vl": Recipe(patches),
    "hyperclovax_vision_v2": Recipe(_WINDOWS, config=_WITH_WINDOWS),
    "idefics": Recipe(of_one_prompt, partial(words_that_see_images, name="image_attention_mask", tiles=())),
    "idefics2": Recipe(masked, config={"perceiver_config": {"resampler_n_latents": 8}}),
    "idefics3": Recipe(masked),
    "inkling2": Recipe(merged_patches),
    "inkling2_loop": Recipe(merged_patches),
    "internvl": Recipe(config=_SMALL),
    "janus": Recipe(),
    "kimi_k25": Recipe(partial(patches, shape=(3, 8, 8))),
    "kosmos-2.5": Recipe(patches_with_places_inside, a_mask_of_places, {"latent_query_num": 8, "text_config": {"layers": 2}}),
    "lfm2_vl": Recipe(patches_with_shapes),
    "lfm3_vl": Recipe(patches),
    "lighton_ocr": Recipe(padded),
    "llava": Recipe(),
    "llava_next": Recipe(tiles, config=_PINPOINTS),
    "llava_next_video": Recipe(tiles, config=_PINPOINTS),
    "llava_onevision": Recipe(tiles, config=_PINPOINTS),
    "minicpm_ocr": Recipe(patches_in_a_row, config={**_MINICPM, "insert_layer_id": 0}),
    "minicpmv4_6": Recipe(patches_in_a_row, config={**_MINICPM, "insert_layer_id": 0}),
    "minicpmv4_7": Recipe(
        patches_in_a_row,
        partial(placeholders, marks=("image_start_id", "image_end_id")),
        {**_MINICPM, "insert_layer_id": 0, "image_start_id": 126, "image_end_id": 125, "slice_start_id": 124, "slice_end_id": 123, "newline_id": 122},
    ),
    "minimax_m3_vl": Recipe(patches),
    "mistral3": Recipe(padded),
    "mllama:vlm": Recipe(
        tiles_with_ratios,
        words_that_see_images,
        {"vision_config": {"intermediate_layers_indices": [0, 1], "vision_output_dim": 192}, "text_config": {"cross_attention_layers": [1]}},
    ),
    "molmo2": Recipe(pooled_crops, config={"image_patch_id": 122, "vision_config": {"num_position_embeddings": 16, "image_size": [32, 32]}}),
    "muse_glimmer": Recipe(_WINDOWS, config=_MUSE),
    "muse_spark": Recipe(_WINDOWS, config=_MUSE),
    "ovis2": Recipe(),
    "paddleocr_vl": Recipe(partial(patches, shape=(3, 8, 8))),
    "paligemma": Recipe(among=prefix_and_suffix),
    "pp_chart2table": Recipe(config=_vision(window_size=3, global_attn_indexes=[1])),
    "qianfan_ocr": Recipe(config=_SMALL),
    "qwen2_5_omni_thinker": Recipe(_WINDOWS, _MARKED, {**_OMNI, **_WITH_WINDOWS}),
    "qwen2_5_vl": Recipe(_WINDOWS, config=_WITH_WINDOWS),
    "qwen2_vl": Recipe(patches),
    "qwen3_5:vlm": Recipe(patches),
    "qwen3_5_moe:vlm": Recipe(patches),
    "qwen3_omni_moe_thinker": Recipe(patches, _MARKED, {**_OMNI, **_vision(deepstack_visual_indexes=[0])}),
    "qwen3_vl": _DEEPSTACK,
    "qwen3_vl_moe": _DEEPSTACK,
    "qwen4_exp:vlm": Recipe(patches),
    "shieldgemma2": Recipe(config=_FOUR_TOKENS),
    "smolvlm": Recipe(masked),
    "step3p7": Recipe(views),
    "t5gemma2": Recipe(partial(squares, size=32), with_decoder, {"encoder": _FOUR_TOKENS}),
    "unlimited_ocr": Recipe(partial(views, grid=True), config=_vision(sam_config=_SAM)),
    "video_llama_3": Recipe(with_merge_sizes),
    "video_llava": Recipe(),
    "vipllava": Recipe(config={"vision_feature_layer": [-1, -2]}),
    "vision-encoder-decoder": Recipe(partial(squares, size=32), captions, {"decoder": {"is_decoder": True, "add_cross_attention": True}}),
}  # fmt: skip

# Dynamo cannot trace these with images, whatever the backend.
UNTRACEABLE: dict[str, Recipe] = {
    "udop": Recipe(partial(squares, size=32), words_on_a_page),  # it writes to places that it reads from a list of tensors
}

# These trace in one graph where Dynamo may take a number from a tensor (`capture_scalar_outputs`): transformers compares how many tokens and
# features there are. All others run as they are called, with a graph break at each such number.
ONE_GRAPH = frozenset((
    "aria", "aya_vision", "blip", "chameleon", "cohere2_vision", "deepseek_ocr2", "deepseek_vl", "deepseek_vl_hybrid", "emu3:vlm", "florence2", "fuyu",
    "gemma3", "git", "got_ocr2", "idefics", "internvl", "janus", "kosmos-2.5", "llava", "mllama:vlm", "paligemma", "pp_chart2table", "qianfan_ocr",
    "shieldgemma2", "t5gemma2", "unlimited_ocr", "video_llava", "vipllava", "vision-encoder-decoder",
))  # fmt: skip

# Models of the family that take no images here, and why.
WITHOUT: dict[str, str] = {
    "mistral4": "a text model: transformers maps the type of a composite model to it",
}
