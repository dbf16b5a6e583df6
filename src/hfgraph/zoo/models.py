"""Tiny models with random weights, one for nearly every architecture in transformers that reads text.

`configs.json` maps a name to an entry::

    {"class":     model class to build, e.g. "LlamaForCausalLM",
     "families":  some of "causal", "seq2seq", "mlm", "vlm"; the first one decides the inputs,
     "overrides": keyword arguments of the config class (nested dicts for sub-configs),
     "inputs":    further forward inputs, {arg: {"shape": [...], "dtype": "float" | "int" | "bool", "high": n}},
                  or a plain value, or null to leave out a standard one,
     "length":    the only number of tokens that fits those inputs,
     "skip":      why the architecture has no entry that builds}

A name is a `model_type` of transformers. Where a model type has a second class in another family, that is `model_type:family`.
"""

from __future__ import annotations

import functools
import importlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hfgraph.errors import UnknownArchitecture

FAMILIES = ("causal", "seq2seq", "mlm", "vlm")
TOKENS = (3, 100)  # random ids: 0 pads, 1 begins, 2 ends; 100 and more stand for images and sound
_CONFIGS = Path(__file__).with_name("configs.json")
# Parameters whose initial value has a meaning (decays, time steps, gates, mixing weights): perturbed, not replaced.
_KEEP = ("A_log", "dt_bias", "dt_proj.bias", "slope", "decay", "time_", "lambda", "sinkhorn", "altup", "rg_lru.recurrent_param")


@functools.cache
def configs() -> dict[str, dict[str, Any]]:
    """The whole table."""
    return json.loads(_CONFIGS.read_text(encoding="utf-8"))


def names(family: str = "") -> list[str]:
    """Names of all that build, or those of one family."""
    return [n for n, entry in configs().items() if not entry.get("skip") and family in ("", *entry["families"])]


def family(name: str) -> str:
    """What decides a model's inputs."""
    return _entry(name)["families"][0]


def _entry(name: str) -> dict[str, Any]:
    if name not in names():
        raise UnknownArchitecture(name, names())
    return configs()[name]


def class_name(name: str) -> str:
    """The class that is built.

    Raises:
        UnknownArchitecture: there is no such entry.
    """
    return _entry(name)["class"]


def build(name: str, seed: int = 0, **overrides: Any) -> nn.Module:
    """The model in float32 and eval mode, with weights that depend on `seed` alone.

    Args:
        overrides: further keyword arguments of the config class.

    Raises:
        UnknownArchitecture: there is no such entry.
    """
    cls, config = _class(name), _config(name, overrides)
    if cls.config_class is not None and not isinstance(config, cls.config_class):  # a text-only class of a composite config
        parts = (getattr(config, k, None) for k in type(config).sub_configs_defaults)
        config = next((p for p in parts if isinstance(p, cls.config_class)), config)
    torch.manual_seed(seed)
    return seeded(cls(config).float().eval(), seed)


def _config(name: str, overrides: Mapping[str, Any]) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    fresh = json.loads(json.dumps(_entry(name)["overrides"]))  # config classes write into what they are given
    return CONFIG_MAPPING[name.split(":")[0]](**{**fresh, **overrides})


def _class(name: str) -> Any:
    import transformers
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    wanted = class_name(name)
    if getattr(transformers, wanted, None) is not None:
        return getattr(transformers, wanted)
    package = f"transformers.models.{model_type_to_module_name(name.split(':')[0])}"
    return getattr(importlib.import_module(f"{package}.modeling_{package.rpartition('.')[2]}"), wanted)


@torch.no_grad()
def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a value that depends only on its name, its shape and `seed`.

    Matrices: normal, std 0.8/sqrt(fan_in) within 0.05..0.3, so that hidden states keep their size and the logits spread. Vectors and scalars
    (norm weights, biases, gates): the model's own initial value plus noise of std 0.05, so that norms stay around what they begin with.
    """
    for name, p in model.named_parameters():
        if not p.is_floating_point():
            continue
        generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float32)
        if p.dim() < 2 or any(k in name for k in _KEEP) or 1 in (p.numel(), p.shape[-1]):
            start = torch.nan_to_num(p.float(), nan=0.0, posinf=0.0, neginf=0.0)
            p.copy_(torch.where(start.abs() < 1e3, start, torch.zeros_like(start)) + 0.05 * noise)
        else:
            fan_in = p.shape[-1] if p.dim() == 2 or "expert" in name else p[0].numel()
            p.copy_(noise * min(0.3, max(0.05, 0.8 * fan_in**-0.5)))
    return model


def inputs(name: str, batch: int = 2, length: int = 12, seed: int = 0) -> dict[str, Any]:
    """Random tokens, decoder tokens for encoder-decoders, and what else the entry says, as keyword arguments of the model."""
    entry = _entry(name)
    generator, length = torch.Generator().manual_seed(seed + 1), entry.get("length", length)
    found: dict[str, Any] = {"input_ids": torch.randint(*TOKENS, (batch, length), generator=generator)}
    if family(name) == "seq2seq":
        found["decoder_input_ids"] = torch.randint(*TOKENS, (batch, length), generator=generator)
    if family(name) != "mlm":
        found["use_cache"] = False
    for key, spec in entry.get("inputs", {}).items():
        if spec is None:
            found.pop(key, None)
        else:
            found[key] = _tensor(spec, generator) if isinstance(spec, dict) else spec
    return found


def _tensor(spec: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    dtype = spec.get("dtype", "float")
    if dtype == "float":
        return torch.randn(spec["shape"], generator=generator)
    if dtype == "bool":
        return torch.ones(spec["shape"], dtype=torch.bool)
    return torch.randint(spec.get("low", 0), spec["high"], spec["shape"], generator=generator)


def logits(output: Any) -> Tensor:
    """The main tensor of a model's output: its logits, or its first floating-point tensor."""
    if isinstance(output, Tensor):
        return output
    if getattr(output, "logits", None) is not None:
        return output.logits
    values = output.values() if hasattr(output, "values") else output
    return next(v for v in values if isinstance(v, Tensor) and v.is_floating_point())
