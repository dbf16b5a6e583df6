"""Strides as kernels need them: leading dims merged where they step evenly, for rows numbered 0, 1, 2, ..., and steps that fit 32 bits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

MAX_LEADING = 3


@dataclass(frozen=True)
class Rows:
    """Tensors of one shape (..., D) seen as rows: leading sizes, and for each tensor its strides over them.

    Args:
        sizes: of the three leading dims left after merging, outermost first, padded with 1.
        tensors: the tensors to read; copies where the layout needed one.
        strides: per tensor, over `sizes`; what stands at a size of 1 is never used.
    """

    sizes: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    strides: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(*tensors: Tensor) -> Rows:
        """Merge the leading dims of tensors of one shape jointly; what needs more than three, or too wide a step, is copied."""
        if any((t.shape[-1] - 1) * t.stride(-1) >= 2**31 for t in tensors):  # the kernel steps through a row in 32 bits
            tensors = tuple(t.contiguous() for t in tensors)
        merged = _merge(tensors)
        if len(merged) > MAX_LEADING:
            tensors = tuple(t.contiguous() for t in tensors)
            merged = _merge(tensors)
        padding = [(1, (0,) * len(tensors))] * (MAX_LEADING - len(merged))
        sizes, steps = zip(*padding, *merged, strict=True)
        return Rows(sizes, tensors, tuple(zip(*steps, strict=True)))


def _merge(tensors: tuple[Tensor, ...]) -> list[tuple[int, tuple[int, ...]]]:
    """(size, one stride per tensor) of each leading dim that remains."""
    merged: list[tuple[int, tuple[int, ...]]] = []
    for dim, size in enumerate(tensors[0].shape[:-1]):
        steps = tuple(t.stride(dim) for t in tensors)
        if size == 1:
            continue
        if merged and all(outer == inner * size for outer, inner in zip(merged[-1][1], steps, strict=True)):
            merged[-1] = (merged[-1][0] * size, steps)
        else:
            merged.append((size, steps))
    return merged


def small_steps(t: Tensor) -> Tensor:
    """The same, or a copy: within a block of up to 256 rows or columns kernels count elements in 32 bits."""
    return t if (t.stride(-1) + t.stride(-2)) * 256 < 2**31 else t.contiguous()
