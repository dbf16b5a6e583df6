"""The launches of the attention kernels that are compiled ahead: every tile, with everything a call may ask for, and with little."""

from __future__ import annotations

from typing import Any

import triton.language as tl

from hfgraph.kernels.attention._config import COLUMNS, CONFIGS, FEW, FUSED, Config, block
from hfgraph.kernels.attention._decode import gather, partial
from hfgraph.kernels.attention._flash import flash
from hfgraph.kernels.launch import Launch

_PLAIN: dict[str, Any] = {"CAP": 0.0, "LEFT": -1, "RIGHT": -1, "CHUNK": 0, "MASKED": "out", "EVERY": False, "FAR": False, "ZEROS": True, "SPLITS": 8}
# Calls by name: tensors that are there (with their types, None for the queries' own), and constants that are not those of plain attention.
CALLS: dict[str, tuple[dict[str, str | None], dict[str, Any]]] = {
    "causal": ({}, {"RIGHT": 0, "group": 1}),  # as many key heads as heads
    "structured": ({"sinks": None, "start": "i64"}, {"CAP": 72.0, "LEFT": 4095, "RIGHT": 0, "CHUNK": 8192}),
    "laden": (
        {"mask": "i8", "bias": None, "segments": "i64", "slopes": "fp32"},
        {"LEFT": 4095, "RIGHT": 0, "MASKED": "replaced", "EVERY": True, "ZEROS": False},
    ),
}
_FLOATS = ("scale", "masked")


def launches() -> tuple[Launch, ...]:
    """Each tile in both kernels with much asked for, the largest with little, too; the gathering kernel with few and with many parts."""
    found = []
    for config in CONFIGS:
        dtype = tl.float32 if config.size == 4 else tl.bfloat16
        call = "laden" if config.laden else "structured"
        found.append(_launch(config, flash, dtype, call))
        if config.rows <= FEW:
            found.append(_launch(config, partial, dtype, call))
        # float32 with little to do has the tiles' registers, but for two that the widest heads lack on sm_90: not worth a smaller tile.
        if not config.laden and config.rows > 16 and config.size == 2:
            found += [_launch(config, flash, t, "causal") for t in (tl.bfloat16, tl.float16)]
    return (*found, *(_gathering(splits, dtype, sinks) for splits in (2, 64) for dtype, sinks in ((tl.bfloat16, True), (tl.float32, False))))


def _gathering(splits: int, dtype: tl.dtype, sinks: bool) -> Launch:
    types = {"sums": "*fp32", "stats": "*fp32", "out": f"*{dtype}"} | ({"sinks": f"*{dtype}"} if sinks else {})
    known: dict[str, Any] = {"V_WIDTH": 128, "ZEROS": True, "SPLITS": splits, "BLOCK": block(splits), "COLUMNS": COLUMNS} | ({} if sinks else {"sinks": None})
    signature = {n: types.get(n, "i32") for n in gather.arg_names if n not in known}
    return Launch(f"gather-{splits}-{dtype}-sinks_{sinks}", gather, signature, known, FUSED, tuple(types))


def _launch(config: Config, kernel: Any, dtype: tl.dtype, call: str) -> Launch:
    """Heads of the tile's full width, in memory as projections leave them."""
    there, constants = CALLS[call]
    tensors = dict.fromkeys(("q", "k", "v", "mask", "bias", "sinks", "segments", "start", "slopes"))
    types = {n: f"*{t or dtype}" for n, t in {**dict.fromkeys("qkv"), **there, "out": None}.items()} | {"sums": "*fp32", "stats": "*fp32"}
    known = {n: None for n in tensors if n not in types} | {"q_d": 1, "k_d": 1, "v_d": 1, "m_n": 1, "b_n": 1, "s_n": 1}
    known |= _PLAIN | constants | config.constants(config.width, config.width)
    known |= {"WIDTH": config.width, "V_WIDTH": config.width}
    known = {n: v for n, v in known.items() if n in kernel.arg_names}
    signature = {n: types.get(n, "fp32" if n in _FLOATS else "i32") for n in kernel.arg_names if n not in known}
    aligned = tuple(n for n in signature if n in types or (len(n) == 3 and n[1] == "_" and n[0] in "qkv"))
    return Launch(f"{kernel.__name__}-{config.name}-{dtype}-{call}", kernel, signature, known, config.options, aligned)
