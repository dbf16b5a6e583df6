"""Names of functions, sorted by what they mean for those that follow values."""

from __future__ import annotations

PRODUCTS = frozenset({"linear", "matmul", "bmm", "baddbmm", "mm", "addmm", "grouped_mm", "_grouped_mm", "grouped_mm_fallback", "einsum"})
ACTIVATIONS = frozenset({"silu", "gelu", "relu", "sigmoid", "tanh"})
PIECES = frozenset({"chunk", "split", "getitem", "select", "narrow", "unbind", "split_with_sizes"})
# Results that are values of their own, whatever they were computed from.
OPAQUE = frozenset({"layer_norm", "rms_norm", "sum", "mean", "cat", "stack", "conv1d", "topk", "softmax"})
