"""Arguments for the tests of mixtures of experts: forms that models have, odd sizes, layouts with NaN around."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfgraph.kernels import all_ops

OP = all_ops()["moe"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Size:
    tokens: int
    choices: int
    experts: int
    width: int
    inner: int


SIZES = {
    "one": Size(1, 1, 1, 1, 1),
    "decode": Size(1, 2, 8, 64, 96),
    "odd": Size(5, 3, 7, 63, 37),
    "many experts": Size(3, 8, 64, 40, 24),
    "bulk": Size(67, 2, 3, 33, 35),
    "some in bulk": Size(40, 2, 16, 64, 48),
}
CLAMPS = {"gate_max": 0.7, "up_min": -0.6, "up_max": 0.5}
# Changes to the arguments: attributes; names of tensors that are there; "no gate".
SETTINGS: dict[str, dict[str, Any]] = {
    "silu": {},
    "gelu": {"activation": "gelu"},
    "gelu_tanh": {"activation": "gelu_tanh"},
    "relu2": {"activation": "relu2"},
    "swish, clamps, offset": {"activation": "swish", "alpha": 1.702, **CLAMPS, "up_offset": 1.0},
    "clamped after": {"act_max": 0.3},
    "biases": {"biases": True},
    "biases, interleaved": {"biases": True, "interleaved": 1},
    "no gate": {"gated": False, "activation": "relu2"},
    "no gate, biases": {"gated": False, "biases": True},
    "weights first": {"weights_first": 1},
    "weights in float32": {"router": torch.float32},
    "ids in int32": {"ids": torch.int32},
}


def made(size: Size, dtype: torch.dtype, setting: str = "silu", scale: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """The op's arguments; results are of a usual size at scale 1."""
    named = dict(SETTINGS[setting])
    gated, biases = named.pop("gated", True), named.pop("biases", False)
    router, ids = named.pop("router", dtype), named.pop("ids", torch.int64)
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int, by: float = 1.0) -> Tensor:
        return (torch.randn(sizes, generator=generator, dtype=torch.float64) * by).to(dtype)

    rows = size.inner * (2 if gated else 1)
    return {
        "x": normal(size.tokens, size.width, by=scale),
        "expert_ids": torch.randint(0, size.experts, (size.tokens, size.choices), generator=generator).to(ids),
        "expert_weights": (torch.rand(size.tokens, size.choices, generator=generator, dtype=torch.float64) + 0.1).to(router),
        "gate_up": normal(size.experts, rows, size.width, by=size.width**-0.5),
        "down": normal(size.experts, size.width, size.inner, by=size.inner**-0.5),
        "gate_up_bias": normal(size.experts, rows, by=0.5 * scale) if biases else None,
        "down_bias": normal(size.experts, size.width, by=0.5 * scale) if biases else None,
        **named,
    }


def far_values(activation: str, dtype: torch.dtype) -> dict[str, Any]:
    """One channel each, so that what the activation is given is chosen: far values, infinities, NaN."""
    values = torch.tensor([-1e30, -1000.0, -90.0, -20.0, -0.0, 0.0, 1e-30, 0.3, 20.0, 90.0, 1000.0, -torch.inf, torch.nan, torch.inf]).to(dtype)
    count, ones = len(values), torch.ones(1, 1, 1, dtype=dtype)
    given = {"x": values[:, None], "expert_ids": torch.zeros(count, 1, dtype=torch.int64), "expert_weights": torch.ones(count, 1, dtype=dtype)}
    return {**given, "gate_up": ones, "down": ones, "activation": activation, "alpha": 1.0}


def one_by_one(given: Mapping[str, Any]) -> Tensor:
    """The reference of each token by itself: where PyTorch computes the GELU of infinity for many at once, in AVX512, it makes NaN of it."""
    by_row = ("x", "expert_ids", "expert_weights")
    return torch.cat([OP.reference(**{n: v[i : i + 1] if n in by_row else v for n, v in given.items()}) for i in range(len(given["x"]))])


def _turned(t: Tensor) -> Tensor:
    """The last dim is not the dense one."""
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)


def _within(t: Tensor) -> Tensor:
    """A part of a larger tensor that is NaN around it; the last dim stays dense."""
    large = t.new_full([n + 3 for n in t.shape], torch.nan if t.is_floating_point() else 1000)
    view = large[tuple(slice(2, 2 + n) for n in t.shape)]
    view.copy_(t)
    return view


# A layout, and the tensors that may have it.
LAYOUTS: Mapping[str, tuple[Callable[[Tensor], Tensor], tuple[str, ...]]] = {
    "turned matrices": (_turned, ("gate_up", "down")),
    "one turned": (_turned, ("down",)),
    "turned choices": (_turned, ("expert_ids", "expert_weights")),
    "within others": (_within, ("x", "expert_ids", "expert_weights", "gate_up", "down", "gate_up_bias", "down_bias")),
    "turned within others": (lambda t: _within(t.transpose(-1, -2)).transpose(-1, -2), ("gate_up", "down")),
}


def laid_out(given: Mapping[str, Any], layout: str) -> dict[str, Any]:
    lay, names = LAYOUTS[layout]
    return {n: lay(a) if n in names and isinstance(a, Tensor) else a for n, a in given.items()}


def check(got: Tensor, given: Mapping[str, Any]) -> None:
    """Raise AssertionError unless `got` is as near to float64 as the reference is: on average, and its worst element within four times of the
    reference's. What an activation is given are differences, so that one more unit in the first product may be many in a result."""
    want = OP.reference(**given)
    exact = OP.reference(**{n: a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for n, a in given.items()})
    assert (got.dtype, got.shape) == (want.dtype, want.shape), f"{got.dtype} {tuple(got.shape)}, the reference's {want.dtype} {tuple(want.shape)}"
    assert got.is_contiguous() and torch.equal(got.isnan(), want.isnan())
    errors, usual = ((t.double() - exact).abs() for t in (got, want))
    slack = exact.abs().max() * (5e-7 if got.dtype is torch.float32 else 2e-3)
    assert errors.max() <= 4 * usual.max() + slack, f"error to float64 {errors.max():.3g}, the reference's {usual.max():.3g}"
    assert errors.mean() <= 1.25 * usual.mean() + slack / 8, f"mean error to float64 {errors.mean():.3g}, the reference's {usual.mean():.3g}"


# Changes to the arguments for "decode" in float32 that no kernel takes.
REFUSED: dict[str, dict[str, Any]] = {
    "double precision": dict.fromkeys(("x", "gate_up", "down"), torch.float64),
    "unlike experts": {"down": torch.bfloat16},
    "router weights in double precision": {"expert_weights": torch.float64},
    "a bias in another dtype": {"down_bias": torch.zeros(8, 64, dtype=torch.bfloat16)},
    "a bias down of another size": {"down_bias": torch.zeros(8, 63)},
    "a bias up of another size": {"gate_up_bias": torch.zeros(8, 191)},
    "ids in int16": {"expert_ids": torch.int16},
    "no dim of choices": {"expert_ids": torch.zeros(1, dtype=torch.int64), "expert_weights": torch.zeros(1)},
    "more ids than weights": {"expert_ids": torch.zeros(1, 3, dtype=torch.int64)},
    "another width": {"down": torch.zeros(8, 63, 96)},
    "a strange number of rows": {"gate_up": torch.zeros(8, 97, 64)},
    "fewer experts down": {"down": torch.zeros(7, 64, 96)},
    "an unknown activation": {"activation": "mish"},
}


def refuses(accepts: Callable[..., bool], change: Mapping[str, Any]) -> bool:
    """Whether a kernel that takes the arguments does not take them changed; a dtype changes that of a tensor."""
    given = made(SIZES["decode"], torch.float32)
    assert accepts(**given)
    changed = {n: given[n].to(v) if isinstance(v, torch.dtype) else v for n, v in change.items()}
    return not accepts(**given | changed)
