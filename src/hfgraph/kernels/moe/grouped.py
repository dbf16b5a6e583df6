"""A product of rows that are sorted by expert, each with its own expert's matrix: in one operator, in every dtype.

ATen's `_grouped_mm` can be traced in bfloat16 alone, and only where rows are aligned.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grouped_mm(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows x[ends[e - 1] : ends[e]] times weight[e].

    Args:
        x: (S, I), rows in the order of their experts.
        weight: (E, I, O), in any layout.
        ends: (E,) int32, where each expert's rows end; rows after the last get zeros.

    Returns:
        (S, O), in x's dtype.
    """
    if x.dtype is torch.bfloat16 and _is_aligned(x) and _is_aligned(weight):
        return torch.ops.aten._grouped_mm.default(x, weight, ends)
    return torch.ops.hfgraph.grouped_mm.default(x, weight, ends)


def _is_aligned(t: Tensor) -> bool:
    """Rows or columns lie side by side, each at a multiple of 16 bytes, as `_grouped_mm` asks."""
    rows, columns = t.stride()[-2:]
    if not all(isinstance(n, int) for n in (rows, columns, *t.shape[-2:])):
        return False
    if columns == 1 and rows >= max(1, t.shape[-1]):
        return rows % 8 == 0
    return rows == 1 and columns >= max(1, t.shape[-2]) and columns % 8 == 0


@torch.library.custom_op("hfgraph::grouped_mm", mutates_args=())
def _grouped_mm(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    out = x.new_zeros(x.shape[0], weight.shape[2])
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(x[start:end], weight[expert], out=out[start:end])
        start = end
    return out


@_grouped_mm.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    del ends
    return x.new_empty(x.shape[0], weight.shape[2])


@torch.library.custom_op("hfgraph::grouped_mm_weight_gradient", mutates_args=())
def _weight_gradient(x: Tensor, gradient: Tensor, ends: Tensor) -> Tensor:
    """(E, I, O): of each expert, its rows' inputs times their gradients; zeros where it has no rows."""
    out = x.new_zeros(ends.shape[0], x.shape[1], gradient.shape[1])
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(x[start:end].t(), gradient[start:end], out=out[expert])
        start = end
    return out


@_weight_gradient.register_fake
def _(x: Tensor, gradient: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.shape[0], x.shape[1], gradient.shape[1])


def _backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, ends = ctx.saved_tensors
    of_x = _grouped_mm(gradient, weight.transpose(1, 2), ends) if ctx.needs_input_grad[0] else None
    return of_x, _weight_gradient(x, gradient.contiguous(), ends) if ctx.needs_input_grad[1] else None, None


def _setup(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs)


_grouped_mm.register_autograd(_backward, setup_context=_setup)
