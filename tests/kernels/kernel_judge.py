"""Is a kernel's result the reference's? Judged in float64, and counted in units in the last place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from kernel_cases import coarsest
from torch import Tensor

from hfgraph.graph.op import Op

# In float32 only the order of a sum may differ from the reference: some units. Narrower results hide that, but for values that
# lie next to a rounding boundary, where one unit and a few elements in a thousand are the price.
UNITS = {torch.float32: 4, torch.float16: 1, torch.bfloat16: 1}
MOVED = 0.005
# Op -> the size of what a result is a difference of, where that may be larger than the result: float32 is exact to some units of it.
# An activation that nearly vanishes is its input times 1 + erf(x), say.
LARGEST: Mapping[str, Callable[[Mapping[str, Any]], Tensor]] = {"glu": lambda a: a["gate"].double().abs() * (a["up"].double().abs() + a["up_offset"])}
# Ops whose last step subtracts products of values that are themselves a unit off: a small difference keeps the error of large
# terms, so units are those of the largest term in a row, which is some times its largest result.
CANCELS = {"qk_norm_rope": 4}


def outputs(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def check(op: Op, got: Any, arguments: Mapping[str, Any], moved_at_most: float = MOVED) -> None:
    """Raise AssertionError, in words, unless `got` is what the op's reference gives for the arguments."""
    want = outputs(op.reference(**arguments))
    got = outputs(got)
    exact = outputs(op.reference(**{n: _double(a) for n, a in arguments.items()}))
    assert len(got) == len(want)
    for i, (g, w, e) in enumerate(zip(got, want, exact, strict=True)):
        unit = coarsest(arguments, w)
        assert (g.dtype, g.shape) == (w.dtype, w.shape), f"output {i} is {g.dtype} {tuple(g.shape)}, the reference's {w.dtype} {tuple(w.shape)}"
        assert g.is_contiguous(), f"output {i} is not contiguous: strides {g.stride()}"
        assert torch.equal(g.isnan(), w.isnan()), f"output {i}: NaN in {int(g.isnan().sum())} elements, in the reference in {int(w.isnan().sum())}"
        g, w = g.double(), w.double()
        gap = (g - w).abs()
        lost = _cancelled(op, arguments) if i == 0 else torch.zeros(())
        size = torch.maximum(g.abs(), w.abs()) + (_added(arguments) if i == 0 else 0)
        size = CANCELS[op.name] * size.amax(-1, keepdim=True) if op.name in CANCELS and size.numel() else size
        allowed = UNITS[unit] * _unit(size, unit) + lost
        if op.name in LARGEST:
            allowed = allowed * 2  # a factor that is one unit off, times one whose digits are larger
            allowed += UNITS[torch.float32] * _unit(LARGEST[op.name](arguments), torch.float32)
        off = int((gap > allowed).sum())
        assert off == 0, f"output {i}: {off} of {g.numel()} elements are off by more than {UNITS[unit]} units of {unit}, at most {gap.max():.3g}"
        if unit is not torch.float32:
            moved = int((gap > lost).sum())
            assert moved <= max(2, moved_at_most * g.numel()), f"output {i}: {moved} of {g.numel()} elements differ from the reference"
        error, usual = ((t - e).abs().max().item() for t in (g, w))
        slack = UNITS[torch.float32] * _unit(w.abs().max(), torch.float32).item() + (lost.max().item() if lost.numel() else 0)
        assert error <= 1.25 * usual + slack, f"output {i}: error to float64 {error:.3g}, the reference's {usual:.3g}"


def _added(arguments: Mapping[str, Any]) -> Tensor | int:
    """The size of a bias: a unit of what it is added to may be many of a sum that it cancels."""
    bias = arguments.get("bias")
    return 0 if bias is None else bias.double().abs()


def _cancelled(op: Op, arguments: Mapping[str, Any]) -> Tensor:
    """What a result may be off because a mean is subtracted: some units of the largest value that it is subtracted from, scaled as the values are."""
    if "layer_norm" not in op.name:
        return torch.zeros(())
    given = {n: _double(a) for n, a in arguments.items()}
    x = given["x"] * given.get("multiplier", 1) + given.get("residual", 0)
    scale = (x.var(-1, correction=0, keepdim=True) + given["eps"]).rsqrt()
    weight = 1 if given["weight"] is None else (given["weight"] + given["offset"]).abs()
    largest = _unit(x.abs().amax(-1, keepdim=True) if x.numel() else x[..., :1], torch.float32)
    return UNITS[torch.float32] * largest * scale * weight


def check_sums(op: Op, got: Tensor, arguments: Mapping[str, Any]) -> None:
    """The same for a weighted sum that rounds at places of its own: as near to float64 as the reference is, on the whole and at worst.

    Elements may differ from the reference's, as either may be the nearer one.
    """
    want, exact = op.reference(**arguments), op.reference(**{n: _double(a) for n, a in arguments.items()})
    assert (got.dtype, got.shape) == (want.dtype, want.shape), f"{got.dtype} {tuple(got.shape)}, the reference's {want.dtype} {tuple(want.shape)}"
    assert got.is_contiguous(), f"not contiguous: strides {got.stride()}"
    assert torch.equal(got.isnan(), want.isnan()), f"NaN in {int(got.isnan().sum())} elements, in the reference in {int(want.isnan().sum())}"
    numbers = ~want.isnan()
    if not numbers.any():
        return
    errors, usual = ((t.double() - exact).abs()[numbers] for t in (got, want))
    largest = want[numbers].double().abs().max()
    # In float32 some units for another order; narrower, one rounding more of the largest element, half a unit.
    slack = UNITS[torch.float32] * _unit(largest, torch.float32) if want.dtype is torch.float32 else _unit(largest, want.dtype) / 2
    assert errors.max() <= 1.25 * usual.max() + slack, f"error to float64 {errors.max():.3g}, the reference's {usual.max():.3g}"
    mean, usual_mean = errors.mean(), usual.mean()
    assert mean <= 1.25 * usual_mean + slack / 8, f"mean error to float64 {mean:.3g}, the reference's {usual_mean:.3g}"


def _double(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.double() if argument.is_floating_point() else argument
    return torch.float64 if isinstance(argument, torch.dtype) else argument


def _unit(size: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance from `size` to the next larger number in `dtype`."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(size.double())
    return torch.clamp(info.eps * torch.exp2(exponent.double() - 1), min=info.eps * info.tiny)
