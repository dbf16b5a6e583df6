"""Arguments for the tests of attention's C++ kernel: every attribute, odd sizes, layouts with NaN around, and a judge in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfgraph.kernels import all_ops

OP = all_ops()["attention"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LOW = {torch.float32: torch.finfo(torch.float32).min, torch.bfloat16: torch.finfo(torch.bfloat16).min}


@dataclass(frozen=True)
class Size:
    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
    width: int
    value_width: int


SIZES = {
    "one": Size(1, 1, 1, 1, 1, 1, 1),
    "decode": Size(2, 9, 3, 1, 129, 64, 64),
    "odd": Size(3, 6, 2, 3, 257, 63, 17),
    "ungrouped": Size(1, 5, 5, 5, 128, 33, 80),
    "wide": Size(2, 24, 1, 2, 300, 40, 128),
    "all queries": Size(1, 2, 2, 16, 19, 96, 50),
}


def _some(*sizes: int) -> Tensor:
    return torch.rand(sizes) > 0.6


def _run(s: Size, begin: int, end: int) -> Tensor:
    """(B, 1, 1, K): one run of keys, longer from batch to batch."""
    keys = torch.arange(s.keys)
    return torch.stack([(keys >= begin) & (keys < end + b) for b in range(s.batch)])[:, None, None]


def _forbidden(bias: Tensor, low: float) -> Tensor:
    """A bias that erases a third of the keys, and everything that the first batch has."""
    found = torch.where(torch.rand(bias.shape) > 0.3, bias, low)
    found[0] = low
    return found


Made = Mapping[str, Any]
# What each setting adds to q, k, v and scale; the names of attributes in a setting's name are those that it tests.
SETTINGS: Mapping[str, Callable[[Size, torch.dtype], Made]] = {
    "nothing": lambda s, t: {},
    "mask (B,1,1,K)": lambda s, t: {"mask": _some(s.batch, 1, 1, s.keys)},
    "mask (B,1,Q,K)": lambda s, t: {"mask": _some(s.batch, 1, s.queries, s.keys)},
    "mask (B,H,Q,K)": lambda s, t: {"mask": _some(s.batch, s.heads, s.queries, s.keys)},
    "mask (Q,K)": lambda s, t: {"mask": _some(s.queries, s.keys)},
    "mask (B,1,Q,1)": lambda s, t: {"mask": _some(s.batch, 1, s.queries, 1)},
    "mask expanded": lambda s, t: {"mask": _some(s.batch, 1, 1, s.keys).expand(-1, s.heads, s.queries, -1)},
    "mask, a run": lambda s, t: {"mask": _run(s, s.keys // 3, s.keys // 2)},
    "mask, nothing": lambda s, t: {"mask": torch.zeros(1, 1, 1, s.keys, dtype=torch.bool)},
    "mask, nothing, masked": lambda s, t: {"mask": torch.zeros(1, 1, 1, s.keys, dtype=torch.bool), "masked": LOW[t]},
    "mask, a run, masked": lambda s, t: {"mask": _run(s, s.keys, s.keys), "masked": LOW[t]},
    "mask, right, masked": lambda s, t: {"mask": _some(s.batch, 1, s.queries, s.keys), "right": 0, "masked": LOW[t]},
    "mask, bias, masked": lambda s, t: {"mask": _run(s, 0, 0), "bias": torch.randn(1, s.heads, 1, s.keys).to(t), "masked": LOW[t]},
    "bias (1,H,Q,K)": lambda s, t: {"bias": torch.randn(1, s.heads, s.queries, s.keys).to(t)},
    "bias (B,1,1,K)": lambda s, t: {"bias": torch.randn(s.batch, 1, 1, s.keys).to(t)},
    "bias (Q,1)": lambda s, t: {"bias": torch.randn(s.queries, 1).to(t)},
    "bias, low": lambda s, t: {"bias": _forbidden(torch.randn(s.batch, 1, s.queries, s.keys), LOW[t]).to(t)},
    "bias, infinite": lambda s, t: {"bias": _forbidden(torch.randn(s.batch, 1, s.queries, s.keys), -torch.inf).to(t)},
    "start": lambda s, t: {"start": torch.tensor(s.keys // 2), "right": 0},
    "start, int32": lambda s, t: {"start": torch.tensor(s.keys // 3, dtype=torch.int32), "right": 0, "left": 4},
    "start, after the end": lambda s, t: {"start": torch.tensor(2 * s.keys), "left": s.keys + 1},
    "offset": lambda s, t: {"offset": 3, "right": 1},
    "offset, before the start": lambda s, t: {"offset": -2, "right": 0},
    "left": lambda s, t: {"left": 5},
    "right": lambda s, t: {"right": 0},
    "left, right": lambda s, t: {"left": 130, "right": 2, "offset": s.keys // 2},
    "chunk": lambda s, t: {"chunk": 6, "right": 0},
    "chunk, before the start": lambda s, t: {"chunk": 4, "offset": -3},
    "softcap": lambda s, t: {"softcap": 2.0},
    "softcap, mask": lambda s, t: {"softcap": 2.0, "mask": _run(s, 0, s.keys // 2), "masked": LOW[t]},
    "softcap, bias": lambda s, t: {"softcap": 1.0, "bias": torch.randn(1, s.heads, 1, s.keys).to(t)},
    "sinks": lambda s, t: {"sinks": torch.randn(s.heads).to(t), "right": 0},
    "sinks, mask, nothing": lambda s, t: {"sinks": torch.randn(s.heads).to(t), "mask": _run(s, 0, 0)},
    "sinks, a run": lambda s, t: {"sinks": torch.randn(s.heads).to(t), "mask": _run(s, s.keys // 3, s.keys // 2)},
    "sinks, high": lambda s, t: {"sinks": torch.full((s.heads,), 90.0, dtype=t), "left": 9},
    "slopes": lambda s, t: {"slopes": [2.0 ** -(h + 1) for h in range(s.heads)], "right": 0},
    "slopes, bias": lambda s, t: {"slopes": [0.03 * h for h in range(s.heads)], "bias": torch.randn(s.batch, 1, 1, s.keys).to(t)},
}


def made(size: Size, dtype: torch.dtype, setting: str, *, scale: float = 1.0) -> dict[str, Any]:
    """Arguments by name; q as a projection leaves it, k and v dense."""
    torch.manual_seed(sum(map(ord, setting)))
    s = size
    q = torch.randn(s.batch, s.queries, s.heads, s.width).mul(scale).to(dtype).transpose(1, 2)
    k, v = (torch.randn(s.batch, s.groups, s.keys, w).to(dtype) for w in (s.width, s.value_width))
    return {"q": q, "k": k, "v": v, "scale": 0.2, **SETTINGS[setting](s, dtype)}


def around(t: Tensor) -> Tensor:
    """The same values with NaN on all sides, rows at odd distances."""
    wide = torch.full((*t.shape[:-2], t.shape[-2] + 2, t.shape[-1] + 3), torch.nan, dtype=t.dtype)
    inner = wide[..., 1:-1, 1:-2]
    return inner.copy_(t)


LAYOUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "around": around,
    "keys outermost": lambda t: t.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3),
    "heads innermost": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "one batch for all": lambda t: t[:1].expand(t.shape),
    "one key for all": lambda t: t[:, :, :1].expand(t.shape),
    "every other row": lambda t: torch.stack([t, torch.full_like(t, torch.nan)], 3).flatten(2, 3)[:, :, ::2],
}


def doubled(given: Made) -> dict[str, Any]:
    return {n: a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for n, a in given.items()}


def faults(got: Tensor, given: Made) -> str:
    """What is wrong with a result, in words; empty where nothing is."""
    want, exact = OP.reference(**given), OP.reference(**doubled(given))
    if (got.shape, got.dtype) != (want.shape, want.dtype) or not got.is_contiguous():
        return f"{got.dtype} {tuple(got.shape)} with strides {got.stride()}, the reference's {want.dtype} {tuple(want.shape)}"
    if not torch.equal(got.isnan(), want.isnan()):
        return f"NaN in {int(got.isnan().sum())} elements, in the reference in {int(want.isnan().sum())}"
    error, usual = ((t.double() - exact).nan_to_num().abs().max().item() for t in (got, want))
    size = exact.nan_to_num().abs().max().item()
    rounding = 0.51 * torch.finfo(got.dtype).eps * size if got.dtype is torch.bfloat16 else 0.0
    allowed = max(2 * usual, rounding) + (8 * size + _noise(given)) * torch.finfo(torch.float32).eps
    return "" if error <= allowed else f"{error:.3g} from float64, the reference {usual:.3g}, allowed {allowed:.3g}"


def _noise(given: Made) -> float:
    """What one unit in the last place of the largest product may move a result: any order of its sum is as good."""
    q, k, v = (given[n].double().nan_to_num() for n in ("q", "k", "v"))
    return (given["scale"] * q.norm(dim=-1).max() * k.norm(dim=-1).max() * v.abs().max()).item()
