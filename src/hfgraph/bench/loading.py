"""The model of a plan: its configuration, its size, and the model itself, equal in every process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from hfgraph import models
from hfgraph.bench.plan import Plan
from hfgraph.bench.presets import PRESETS
from hfgraph.errors import CannotBench, ModelNotFound

_NOISE = 0.1


def configuration(plan: Plan) -> Any:
    """The model's configuration.

    Raises:
        ModelNotFound: it cannot be loaded.
    """
    if not plan.source:
        preset = PRESETS[plan.model]
        return AutoConfig.for_model(preset.model_type, **preset.config)
    try:
        return AutoConfig.from_pretrained(plan.source)
    except Exception as e:  # as in `models.load`: every failure is the same to who named the model
        raise ModelNotFound(plan.model, models.sentence(e)) from e


def skeleton(plan: Plan) -> PreTrainedModel:
    """The model without values: its sizes, on the meta device.

    Raises:
        ModelNotFound, CannotBench.
    """
    config = configuration(plan)
    cls: Any = models.class_of(config) if plan.source else transformers.AutoModelForCausalLM
    try:
        with torch.device("meta"):
            made = cls.from_config(config) if hasattr(cls, "from_config") else cls(config)
    except Exception as e:
        raise ModelNotFound(plan.model, models.sentence(e)) from e
    if config.is_encoder_decoder or not made.can_generate():
        raise CannotBench(plan.model, f"{type(made).__name__} does not write text")
    return made


def build(plan: Plan) -> PreTrainedModel:
    """The model on its device, the same in every process.

    A preset's weights are random. Its norm weights would be ones and its biases zeros, which hide bugs: noise is added to both.
    """
    dtype = getattr(torch, plan.dtype)
    if plan.source:
        model = models.load(plan.source, plan.dtype)
    else:
        torch.manual_seed(plan.seed)
        model = transformers.AutoModelForCausalLM.from_config(configuration(plan), dtype=dtype).eval()
        roughen(model, plan.seed)
    model.requires_grad_(False)
    model.generation_config = transformers.GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0, disable_compile=True)
    return model.to(plan.device)  # pyright: ignore[reportArgumentType]  (the stub of PreTrainedModel.to)


@torch.no_grad()
def roughen(model: nn.Module, seed: int) -> None:
    """Seeded noise on every vector parameter."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.ndim < 2 and p.is_floating_point():
            p.add_(_NOISE * torch.randn(p.shape, generator=generator).to(p))


def positions(config: Any) -> int | None:
    """How many tokens the model reads at most; None where it says nothing."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def multiplied(model: PreTrainedModel) -> int:
    """Bytes of the weights that every token is multiplied with: all but embeddings that are only looked up."""
    head = model.get_output_embeddings()
    tied = {id(p) for p in head.parameters()} if head is not None else set[int]()
    looked_up = {id(p) for p in _lookups(model)} - tied
    return sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in looked_up)


def _lookups(model: nn.Module) -> Iterator[nn.Parameter]:
    for m in model.modules():
        if isinstance(m, nn.Embedding):
            yield from m.parameters()
