"""Arguments for the tests of attention's kernels: what a call may ask for, each alone and together, and what must not go unnoticed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """Of queries, keys, heads and widths. `heads` is a multiple of `groups`."""

    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
    width: int
    v_width: int

    def pairs(self, batch: bool = True, heads: bool = True) -> tuple[int, ...]:
        return (self.batch if batch else 1, self.heads if heads else 1, self.queries, self.keys)


# Many queries: two tiles of rows, two heads to a tile. Few: keys in parts, the last of them not full.
SIZES = {"many": Sizes(1, 2, 1, 75, 141, 40, 24), "few": Sizes(1, 4, 2, 3, 301, 63, 20)}
Make = Callable[[Sizes, torch.dtype, torch.Generator], dict[str, Any]]


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _mask(s: Sizes, g: torch.Generator, batch: bool = True, heads: bool = False) -> Tensor:
    """True for most; the first query is without any key."""
    mask = torch.randn(s.pairs(batch, heads), generator=g) > -1
    mask[..., 0, :] = False
    return mask


def _segments(s: Sizes, g: torch.Generator) -> Tensor:
    return torch.randint(0, 3, (s.batch, s.keys), generator=g).sort(-1).values


def _slopes(s: Sizes) -> list[float]:
    return [2.0 ** -(i + 1) for i in range(s.heads)]


def _low(dtype: torch.dtype) -> float:
    """Far below all scores. In float16 not the lowest number: sums with it, which are finer in float64, would be rounded to multiples of 0.004."""
    return -1000.0 if dtype is torch.float16 else torch.finfo(dtype).min


@dataclass(frozen=True)
class Case:
    """What to add to q, k, v and scale; `mutants` are changes to it, each of which must change the result."""

    make: Make
    mutants: Mapping[str, Any] = field(default_factory=dict)


def case(mutants: Mapping[str, Any] | None = None, **fixed: Any) -> Case:
    return Case(lambda s, t, g: dict(fixed), mutants or {})


CASES: Mapping[str, Case] = {
    "plain": case({"scale": 0.3}),
    "causal": case({"right": 1}, right=0),
    "before_only": case({"left": 4}, left=5),
    "window": case({"left": 6, "right": 3}, left=7, right=2),
    "chunk": case({"chunk": 31, "right": 1}, chunk=32, right=0),
    "chunk_alone": case({"chunk": 49}, chunk=48),
    "offset": case({"offset": 10}, offset=9, right=0),
    "before_the_keys": case({"offset": -4}, offset=-5, left=3, right=2, chunk=16),
    "start": case({"start": torch.tensor(21)}, start=torch.tensor(20), right=0, left=30),
    "start_in_one": case({"start": torch.tensor([91])}, start=torch.tensor([90], dtype=torch.int32), right=0),
    "softcap": case({"softcap": 2.5}, softcap=2.0, right=0),
    "mask": Case(lambda s, t, g: {"mask": _mask(s, g)}, {"mask": None}),
    "mask_of_heads": Case(lambda s, t, g: {"mask": _mask(s, g, False, True), "right": 0}, {"mask": None}),
    "mask_of_keys": Case(lambda s, t, g: {"mask": _mask(s, g)[:, :, -1:], "right": 0, "masked": _low(t)}, {"mask": None}),
    "bias": Case(lambda s, t, g: {"bias": normal(g, *s.pairs(False), dtype=t)}, {"bias": None}),
    "bias_of_keys": Case(lambda s, t, g: {"bias": normal(g, s.keys, dtype=t), "left": 40}, {"bias": None}),
    "bias_in_single": Case(lambda s, t, g: {"bias": normal(g, s.queries, 1, dtype=torch.float32), "softcap": 4.0}, {"softcap": 3.0}),
    "slopes": Case(lambda s, t, g: {"slopes": _slopes(s), "right": 0}, {"slopes": None}),
    "slopes_and_bias": Case(lambda s, t, g: {"slopes": _slopes(s), "bias": normal(g, *s.pairs(), dtype=t)}, {"slopes": None, "bias": None}),
    "sinks": Case(lambda s, t, g: {"sinks": normal(g, s.heads, dtype=t), "right": 0, "mask": _mask(s, g)}, {"sinks": None}),
    "segments": Case(lambda s, t, g: {"segments": _segments(s, g), "right": 0}, {"segments": None}),
    "low": Case(lambda s, t, g: {"mask": _mask(s, g), "right": 0, "masked": _low(t)}, {"masked": None}),
    "low_added": Case(lambda s, t, g: {"mask": _mask(s, g), "masked": -3.0}, {"masked": -2.0}),
    "low_replaced": Case(lambda s, t, g: {"mask": _mask(s, g), "masked": -3.0, "softcap": 5.0, "left": 20}, {"masked": -2.0}),
    "low_by_position": Case(lambda s, t, g: {"offset": -3, "right": 0, "masked": _low(t)}, {"masked": None}),
    "lowest_by_position": case({"masked": None}, offset=-3, right=0, softcap=9.0, masked=-1e38),
    "nothing": Case(lambda s, t, g: {"mask": _mask(s, g), "softcap": 5.0, "masked": float("-inf")}, {"masked": None}),
    "nothing_added": Case(lambda s, t, g: {"mask": _mask(s, g), "masked": float("-inf")}, {"masked": -1e4}),
    "all": Case(
        lambda s, t, g: {
            "mask": _mask(s, g), "bias": normal(g, *s.pairs(), dtype=t), "sinks": normal(g, s.heads, dtype=t), "segments": _segments(s, g),
            "start": torch.tensor(s.keys - s.queries - 4), "left": 60, "right": 1, "chunk": 128, "softcap": 5.0, "slopes": _slopes(s), "masked": -30.0,
        },
        {"mask": None, "bias": None, "sinks": None, "segments": None, "left": 10, "right": 0, "chunk": 16, "softcap": 0.0, "masked": -1.0},
    ),
}  # fmt: skip


def arguments(sizes: Sizes, dtype: torch.dtype, name: str = "plain", device: str = "cpu", scale: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """Concrete arguments by name; queries are multiplied by `scale`."""
    g, s = torch.Generator().manual_seed(seed), sizes
    q = normal(g, s.batch, s.heads, s.queries, s.width, dtype=torch.float64).mul(scale).to(dtype)
    k, v = (normal(g, s.batch, s.groups, s.keys, w, dtype=dtype) for w in (s.width, s.v_width))
    made = {"q": q, "k": k, "v": v, "scale": s.width**-0.5, **CASES[name].make(s, dtype, g)}
    return {n: a.to(device) if isinstance(a, Tensor) else a for n, a in made.items()}
