"""Attention in Triton: which of the two ways takes a call, how it is cut, and what the kernels are told."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from hfgraph.kernels.attention import is_spelled
from hfgraph.kernels.attention._config import COLUMNS, FUSED, block, config_for, parts
from hfgraph.kernels.attention._decode import gather, partial
from hfgraph.kernels.attention._flash import flash
from hfgraph.kernels.attention._launches import launches
from hfgraph.kernels.launch import Launch
from hfgraph.kernels.strides import small_steps

AOT: tuple[Launch, ...] = launches()
LOG2E = math.log2(math.e)
LOW = -1e30  # no sum of products is as low; float32 can still tell numbers below apart


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    segments: Tensor | None = None,
    start: Tensor | None = None,
    scale: float = 1.0,
    left: int = -1,
    right: int = -1,
    chunk: int = 0,
    offset: int | None = None,
    softcap: float = 0.0,
    slopes: list[float] | None = None,
    masked: float | None = None,
) -> Tensor:
    """The op's reference, no score ever in memory: q (..., H, Q, D), k (..., G, K, D), v (..., G, K, E); returns (..., H, Q, E), fresh and contiguous."""
    out = torch.empty((*q.shape[:-1], v.shape[-1]), dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    tensors = _tensors(q, k, v, mask, bias, segments, start, slopes)
    spelled = is_spelled(sinks, softcap, masked)  # the reference's ways differ in what happens to masked scores
    dtype = torch.promote_types(q.dtype, bias.dtype) if spelled and bias is not None else q.dtype
    left, right = (-1 if n < 0 or n >= 2**30 else n for n in (left, right))
    by_position, by_data = left >= 0 or right >= 0 or chunk > 0, mask is not None or segments is not None
    constants = {
        "WIDTH": q.shape[-1], "V_WIDTH": v.shape[-1], "CAP": abs(softcap) * LOG2E, "LEFT": left, "RIGHT": right, "CHUNK": chunk,
        **_fate(masked, spelled, by_position or by_data, by_data or bias is not None, dtype),
    }  # fmt: skip
    numbers = {
        "heads": tensors["q"].shape[1], "group": tensors["q"].shape[1] // tensors["k"].shape[1], "queries": q.shape[-2], "keys": k.shape[-2],
        "offset": k.shape[-2] - q.shape[-2] if offset is None else offset,
        "scale": scale / abs(softcap) if softcap else scale * LOG2E, "masked": constants.pop("masked"),
    }  # fmt: skip
    with torch.cuda.device_of(q):
        _launch(tensors, None if sinks is None else sinks.to(dtype).contiguous(), out, numbers, constants)
    return out


def _fate(masked: float | None, spelled: bool, restricted: bool, uncertain: bool, dtype: torch.dtype) -> dict[str, Any]:
    """What becomes of keys that do not count, and of queries without any: `MASKED`, `ZEROS` and `EVERY` of the kernels, and the score `masked`.

    Args:
        uncertain: tensors decide which keys count, or how much.
    """
    low = -math.inf if masked is None or not restricted else _rounded(masked, dtype)
    if low == -math.inf:
        return {"MASKED": "out", "ZEROS": not spelled or (restricted and masked is None), "EVERY": False, "masked": 0.0}
    # All keys are visited where some query may have none that counts, or where masked keys weigh something beside others.
    every = uncertain or low > LOW
    return {"MASKED": "replaced" if spelled else "added", "ZEROS": False, "EVERY": every, "masked": max(low * LOG2E, -3e38)}


@lru_cache(maxsize=256)
def _rounded(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=torch.float64).to(dtype).item()


@lru_cache(maxsize=256)
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def _tensors(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, segments: Tensor | None, start: Tensor | None, slopes: list[float] | None
) -> dict[str, Any]:
    """All tensors but sinks as the kernels read them: (B, heads, rows, columns) by strides, 0 where broadcast."""
    assert segments is None or q.shape[-2] <= k.shape[-2], "queries of segments are the last positions"
    queries = _in_four(q)
    pairs = (*q.shape[:-1], k.shape[-2])
    return {
        "q": queries,
        "k": small_steps(_in_four(k)),
        "v": small_steps(_in_four(v)),
        "mask": None if mask is None else _in_four(mask.view(torch.int8).expand(pairs)),
        "bias": None if bias is None else _in_four(bias.expand(pairs)),
        "segments": None if segments is None else segments.expand(queries.shape[0], k.shape[-2]),
        "start": None if start is None else start.to(q.device),
        "slopes": _on_device(tuple(slopes), q.device) if slopes else None,
    }


def _in_four(t: Tensor) -> Tensor:
    return t.flatten(0, -4) if t.ndim > 4 else t[(None,) * (4 - t.ndim)]


def _launch(tensors: dict[str, Any], sinks: Tensor | None, out: Tensor, numbers: dict[str, Any], constants: dict[str, Any]) -> None:
    pairs, rows = tensors["k"].shape[0] * tensors["k"].shape[1], numbers["group"] * numbers["queries"]
    width, v_width = constants["WIDTH"], constants["V_WIDTH"]
    laden = [t for t in (tensors["mask"], tensors["bias"]) if t is not None]
    config = config_for(rows, max(width, v_width), out.element_size(), bool(laden))
    far = any(config.rows * (t.stride(1) + t.stride(2)) + config.keys * t.stride(3) >= 2**31 for t in laden)
    given: dict[str, Any] = tensors | numbers | _strides(tensors) | constants | {"FAR": far} | config.constants(width, v_width)
    tiles = pairs * triton.cdiv(rows, config.rows)
    splits = parts(tiles, config, constants, numbers)
    if splits == 1:
        flash[(tiles,)](**given, sinks=sinks, out=out, **config.options)
        return
    end: dict[str, Any] = {"V_WIDTH": v_width, "ZEROS": given.pop("ZEROS"), "SPLITS": splits, "BLOCK": block(splits), "COLUMNS": COLUMNS, **FUSED}
    sums = torch.empty((pairs * rows, splits, v_width), dtype=torch.float32, device=out.device)
    stats = torch.empty((pairs * rows, splits, 2), dtype=torch.float32, device=out.device)
    given |= {"sums": sums, "stats": stats, "SPLITS": splits}
    partial[(tiles, splits)](**given, **config.options)
    counts = (numbers["heads"], numbers["group"], numbers["queries"])
    gather[(pairs * rows, triton.cdiv(v_width, COLUMNS))](sums, stats, sinks, out, *counts, **end)


def _strides(tensors: dict[str, Any]) -> dict[str, int]:
    """Each tensor's strides by the kernels' names; zeros for a tensor that is not there."""
    names = {"q": "bhmd", "k": "bhnd", "v": "bhnd", "mask": "bhmn", "bias": "bhmn", "segments": "bn"}
    return {f"{t[0]}_{d}": s for t, dims in names.items() for d, s in zip(dims, (0,) * 4 if tensors[t] is None else tensors[t].stride(), strict=False)}
