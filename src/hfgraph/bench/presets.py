"""Geometries of known models, from 0.1 to 8 B parameters, with random weights: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgraph.errors import NotInAClone

TINYLM = "tinylm"


@dataclass(frozen=True)
class Preset:
    """A configuration of `transformers`: its `model_type`, what differs from that type's defaults, and how large the model is.

    Attributes:
        millions: parameters, shared ones counted once.
    """

    model_type: str
    config: Mapping[str, Any]
    millions: float


def _preset(
    model_type: str, millions: float, *, vocabulary: int, hidden: int, inner: int, layers: int, heads: tuple[int, int, int], tied: bool = True,
    positions: int = 32768, theta: float = 1e4, **rest: Any,
) -> Preset:  # fmt: skip
    """`heads`: of queries, of keys and values, and the size of each."""
    queries, keys, size = heads
    sizes = {"vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "max_position_embeddings": positions}
    attention = {"num_attention_heads": queries, "num_key_value_heads": keys, "head_dim": size}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    return Preset(model_type, {**sizes, **attention, **rope, "tie_word_embeddings": tied, **rest}, millions)


_LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

PRESETS: dict[str, Preset] = {
    "smollm2-135m": _preset("llama", 134.5, vocabulary=49152, hidden=576, inner=1536, layers=30, heads=(9, 3, 64), positions=8192, theta=1e5),
    "smollm2-360m": _preset("llama", 361.8, vocabulary=49152, hidden=960, inner=2560, layers=32, heads=(15, 5, 64), positions=8192, theta=1e5),
    "qwen2.5-0.5b": _preset("qwen2", 494.0, vocabulary=151936, hidden=896, inner=4864, layers=24, heads=(14, 2, 64), theta=1e6),
    "qwen3-0.6b": _preset("qwen3", 596.0, vocabulary=151936, hidden=1024, inner=3072, layers=28, heads=(16, 8, 128), positions=40960, theta=1e6),
    "tinyllama-1.1b": _preset("llama", 1100.0, vocabulary=32000, hidden=2048, inner=5632, layers=22, heads=(32, 4, 64), tied=False, positions=2048),
    "llama-3.2-1b": _preset(
        "llama", 1235.8, vocabulary=128256, hidden=2048, inner=8192, layers=16, heads=(32, 8, 64), positions=131072, rope_parameters={**_LLAMA3, "factor": 32.0}
    ),
    "qwen3-1.7b": _preset("qwen3", 1720.6, vocabulary=151936, hidden=2048, inner=6144, layers=28, heads=(16, 8, 128), positions=40960, theta=1e6),
    "gemma-2-2b": _preset(
        "gemma2", 2614.3, vocabulary=256000, hidden=2304, inner=9216, layers=26, heads=(8, 4, 256), positions=8192,
        query_pre_attn_scalar=256, sliding_window=4096,
    ),
    "qwen3-4b": _preset("qwen3", 4022.5, vocabulary=151936, hidden=2560, inner=9728, layers=36, heads=(32, 8, 128), positions=40960, theta=1e6),
    "mistral-7b": _preset(
        "mistral", 7248.0, vocabulary=32768, hidden=4096, inner=14336, layers=32, heads=(32, 8, 128), tied=False, theta=1e6, sliding_window=None
    ),
    "llama-3.1-8b": _preset(
        "llama", 8030.3, vocabulary=128256, hidden=4096, inner=14336, layers=32, heads=(32, 8, 128), tied=False, positions=131072,
        rope_parameters={**_LLAMA3, "factor": 8.0},
    ),
}  # fmt: skip

NAMES = (TINYLM, *PRESETS)


def tinylm() -> str:
    """The folder of the small model with real weights that comes with hfgraph's repository.

    Raises:
        NotInAClone: hfgraph was installed without it.
    """
    folder = Path(__file__).parents[3] / "examples" / TINYLM
    if not (folder / "config.json").is_file():
        raise NotInAClone(TINYLM, str(folder))
    return str(folder)
