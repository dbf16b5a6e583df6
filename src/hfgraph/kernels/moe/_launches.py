"""The launches of the experts' kernels that are compiled ahead: every tile, with little asked for and with all that needs registers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import triton.language as tl

from hfgraph.kernels.launch import Launch
from hfgraph.kernels.moe import _kernels
from hfgraph.kernels.moe._config import CONFIGS, Config

_LIMITS = ("gate_max", "act_max", "up_min", "up_max")
_FLOATS = ("alpha", *_LIMITS)


@dataclass(frozen=True)
class Call:
    """What a call asks for: tensors and bounds that are there, steps of 1, the dtype of the router's weights (None: the experts'), and constants."""

    there: tuple[str, ...]
    ones: tuple[str, ...]
    router: tl.dtype | None = None
    constants: dict[str, Any] = field(default_factory=dict)


_SIZES: dict[str, Any] = {"CHOICES": 8, "WIDTH": 2048, "INNER": 768, "EXPERTS": 128, "BLOCK": 128}
_GATE: dict[str, Any] = {"FACTORED": tl.float32, "GATED": True, "INTERLEAVED": False, "ACTIVATION": "silu", "OFFSET": 0.0}
_DENSE = ("x_h", "w_c", "b_n")
CALLS = {
    "plain": Call((), (*_DENSE, "m_k")),
    # Matrices lie transposed, gates alternate with what they gate.
    "laden": Call(("biases", *_LIMITS), (*_DENSE, "m_n"), None, {"INTERLEAVED": True, "ACTIVATION": "swish", "OFFSET": 1.0}),
    # Sizes that fill no block; weights come first in the first product, last in the second.
    "odd": Call(("biases", "weights"), (*_DENSE, "m_k"), tl.float32, {"ACTIVATION": "gelu", "WIDTH": 2000, "INNER": 720, "EXPERTS": 60, "BLOCK": 64}),
    "irregular": Call(("biases", "weights"), (), tl.float32, {"ACTIVATION": "gelu_tanh", "WIDTH": 1001, "INNER": 333}),
    "no gate": Call(("weights",), (*_DENSE, "m_k"), None, {"GATED": False, "ACTIVATION": "gelu_new"}),
}


def launches() -> tuple[Launch, ...]:
    """Every tile in both kernels; where memory is irregular for those that are taken then; the largest with little to do and without a gate, too."""
    found = []
    for config in CONFIGS:
        dtype = tl.float32 if config.size == 4 else tl.bfloat16
        found += [_launch(config, _kernels.up, dtype, "laden"), *(_launch(config, k, dtype, "odd") for k in (_kernels.up, _kernels.down))]
        if config.irregular:
            found.append(_launch(config, _kernels.up, dtype, "irregular"))
    largest = next(c for c in reversed(CONFIGS) if c.size == 2)
    return (*found, _launch(largest, _kernels.up, tl.bfloat16, "plain"), _launch(largest, _kernels.up, tl.float16, "no gate"))


def _launch(config: Config, kernel: Any, dtype: tl.dtype, call: str) -> Launch:
    asked = CALLS[call]
    types = dict.fromkeys(("x", "inner", "matrices", "biases"), f"*{dtype}") | dict.fromkeys(("weights", "out"), f"*{asked.router or dtype}")
    types |= {"order": "*i64", "ends": "*i32"}
    known: dict[str, Any] = {n: None for n in ("weights", "biases", *_LIMITS) if n not in asked.there}
    constants = _GATE | asked.constants
    known |= dict.fromkeys(asked.ones, 1) | _SIZES | constants | config.constants(kernel is _kernels.up and constants["GATED"])
    known = {n: v for n, v in known.items() if n in kernel.arg_names}
    signature = {n: types.get(n, "fp32" if n in _FLOATS else "i32") for n in kernel.arg_names if n not in known}
    aligned = tuple(n for n in signature if n in types or (asked.ones and n in ("x_t", "m_e", "m_n", "m_k", "b_e")))
    return Launch(f"{kernel.__name__}-{config.name}-{dtype}-{call}", kernel, signature, known, config.options, aligned)
