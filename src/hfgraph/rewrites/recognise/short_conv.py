"""Convolutions of each channel by itself over the few tokens before a token: zeros before the first one, or what a cache kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from hfgraph.graph.recogniser import Example, Found, Recogniser, Refusal, View
from hfgraph.graph.values import arguments, same_size, val
from hfgraph.kernels.short_conv import short_conv

aten = torch.ops.aten
_MOST_TAPS = 16


def recognise(node: Node, view: View) -> Found | Refusal | None:
    del view
    given = arguments(node)
    x, weight = val(given["input"]), val(given["weight"])
    channels, _, taps = weight.shape
    if x.ndim != 3 or not isinstance(taps, int) or not 1 < taps <= _MOST_TAPS:
        return None
    if not isinstance(channels, int) or given["groups"] != channels or not same_size(x.shape[1], channels):
        return None
    if any(s != 1 for s in (*given["stride"], *given["dilation"])) or not x.is_floating_point():
        return None
    padding = list(given["padding"])
    args = {"x": given["input"], "weight": given["weight"], "bias": given["bias"]}
    note = f"state of {channels} x {taps - 1} per sequence"
    if padding == [0]:
        behind = given["input"].target is aten.cat.default and given["input"].args[1:] in ((-1,), (2,))
        return Found((node,), short_conv, {**args, "padded": 0}, (node,), note=note if behind else f"{taps} places")
    user = next(iter(node.users))
    if padding != [taps - 1] or len(node.users) > 1 or not _takes_the_first(user, x.shape[2]):
        return None  # it looks ahead
    return Found((user,), short_conv, {**args, "padded": 1}, (node, user), (node,), note=note)


def _takes_the_first(node: Node, length: object) -> bool:
    """Whether a node takes as many tokens as there are, from the first."""
    if node.target is not aten.slice.Tensor:
        return False
    given = arguments(node)
    end = val(given["end"]) if isinstance(given["end"], Node) else given["end"]
    return given["dim"] == -1 and given["start"] in (None, 0) and given["step"] == 1 and end is not None and same_size(end, length)


def _make(bias: bool) -> Callable[[torch.dtype, int], tuple[Tensor, ...]]:
    def make(dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        shapes = ((2, 13, 6), (6, 1, 4), *([(6,)] if bias else []))
        return tuple((torch.randn(s, generator=generator, dtype=torch.float64) * 0.5).to(dtype) for s in shapes)

    return make


def _zeros_first(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Most models."""
    x = x.transpose(1, 2)
    return F.silu(F.conv1d(x, weight, bias, padding=3, groups=6)[:, :, : x.shape[-1]])


def _weights_as_a_matrix(x: Tensor, weight: Tensor) -> Tensor:
    """The weight without its dim of one, which comes back."""
    x = x.transpose(1, 2)
    return F.conv1d(x, weight.squeeze(1).unsqueeze(1), padding=3, groups=6)[..., : x.shape[-1]]


def _after_a_state(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """With a cache: what it kept stands before the tokens."""
    x = x.transpose(1, 2)
    state, new = x[..., :3], x[..., 3:]
    return F.conv1d(torch.cat([state, new], -1), weight, bias, padding=0, groups=6)[:, :, -new.shape[-1] :]


RULE = Recogniser(
    anchors=frozenset({aten.conv1d.default}),
    recognise=recognise,
    op=short_conv,
    examples=(
        Example("zeros before the first token", _zeros_first, _make(True), fixed=(4, 6)),
        Example("weights as a matrix", _weights_as_a_matrix, _make(False), fixed=(4, 6)),
        # Zeros before what is cut off change nothing.
        Example("what a cache kept before the tokens", _after_a_state, _make(True), equal=("padded",), fixed=(4, 6)),
    ),
)
