"""Small models with weights that hide nothing, and what the model tests do with them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import hfgraph
from hfgraph import zoo

PLAIN = {"inductor": False, "strict": True}  # the rewritten graph as it is: no rounding but its own


def build(name: str, **config: Any) -> nn.Module:
    """A model of the zoo, without end-of-sequence so that every generation has the same length."""
    model = zoo.build(name, **config)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
    return model


def tiny(kind: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any) -> nn.Module:
    """The recipe of the public bug reports: norm weights around 0.5, biases around 0, matrices five times larger than usual.

    At the default initialisation a dropped bias, a wrong offset of a norm and a softcap that never bites are all invisible.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    base = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**base, **config})).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + zlib.crc32(name.encode())))
            if p.ndim >= 2:
                p.mul_(5)
            else:
                p.copy_(0.3 * noise + (0.5 if name.endswith("weight") else 0))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.to(dtype)


def tokens(*shape: int, seed: int = 0, high: int = 97) -> Tensor:
    return torch.randint(3, high, shape, generator=torch.Generator().manual_seed(seed))


def compiled(model: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    """`model` through hfgraph, without Inductor unless asked for."""
    return torch.compile(model, backend="hfgraph", **{"options": PLAIN, **how})


def assert_equal(got: Any, want: Any, atol: float = 1e-5) -> None:
    """Two model outputs: the same keys, and tensors within `atol`, in tuples and caches too."""
    if isinstance(want, Tensor):
        torch.testing.assert_close(got, want, atol=atol, rtol=0)
    elif isinstance(want, Mapping):
        assert list(got) == list(want)
        for key in want:
            assert_equal(got[key], want[key], atol)
    elif isinstance(want, list | tuple):
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            assert_equal(g, w, atol)
    elif hasattr(want, "layers"):  # a cache
        assert_equal([(x.keys, x.values) for x in got.layers], [(x.keys, x.values) for x in want.layers], atol)
    else:
        assert got == want


def graphs() -> int:
    """Graphs that Dynamo has handed to a backend since the last reset."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def norms_found(model: nn.Module) -> int:
    """RMSNorm sites of the most recent compilation; asserts that there are as many as the model has norms."""
    found = hfgraph.last_report().counts.get("rms_norm", 0)
    expected = sum(type(m).__name__.endswith("RMSNorm") for m in model.modules())
    assert found == expected > 0, f"{found} sites for {expected} RMSNorm modules"
    return found
