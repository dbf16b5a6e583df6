"""Convolutions that cut images into patches: as wide a stride as the kernel, nothing around, so that no value is read twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from hfgraph.graph.recogniser import Example, Found, Recogniser, Refusal, View
from hfgraph.graph.values import arguments, is_dense, val
from hfgraph.kernels.patch_embedding import patch_embedding

aten = torch.ops.aten
_CONVOLUTIONS: dict[Any, int] = {
    overload: rank
    for rank, packet in ((1, aten.conv1d), (2, aten.conv2d), (3, aten.conv3d))
    for overload in (packet.default, packet.padding)
}  # fmt: skip


def recognise(node: Node, view: View) -> Found | Refusal | None:
    del view
    given, rank = arguments(node), _CONVOLUTIONS[node.target]
    x, weight = val(given["input"]), val(given["weight"])
    kernel = list(weight.shape[2:])
    if not all(isinstance(k, int) for k in kernel) or _each(given["stride"], rank) != kernel or max(kernel) == 1 or not x.is_floating_point():
        return None
    padded = given["padding"] != "valid" and any(p != 0 for p in _each(given["padding"], rank))
    if padded or given["groups"] != 1 or any(d != 1 for d in _each(given["dilation"], rank)) or x.ndim != rank + 2:
        return None
    if not (is_dense(x) and is_dense(weight)):
        return Refusal("the image or the weight is not contiguous, as with channels last, and so would the result not be", node)
    args = {name: given[key] for name, key in (("x", "input"), ("weight", "weight"), ("bias", "bias"))}
    return Found((node,), patch_embedding, args, (node,), note="patches of " + " x ".join(map(str, kernel)))


def _each(given: Any, rank: int) -> list[Any]:
    """A value for each dim; one stands for all."""
    return [given] if isinstance(given, str) else list(given) * rank if len(given) == 1 else list(given)


def _made(x: tuple[int, ...], weight: tuple[int, ...], *, bias: bool = True) -> Callable[[torch.dtype, int], tuple[Tensor, ...]]:
    def make(dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        shapes = [x, weight, *([weight[:1]] if bias else [])]
        return tuple((torch.randn(s, generator=generator, dtype=torch.float64) * 0.5).to(dtype) for s in shapes)

    return make


def _images(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Most towers."""
    return F.conv2d(x, weight, bias, stride=(8, 8)).flatten(2).transpose(1, 2)


def _images_with_valid_padding(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """No padding, in a word; rows are left over."""
    return F.conv2d(x, weight, bias, stride=7, padding="valid").flatten(2)


def _rows_of_patches(x: Tensor, weight: Tensor) -> Tensor:
    """The caller has cut the film, and the kernel is as large as what it is given."""
    return F.conv3d(x.view(-1, 3, 2, 4, 4), weight, stride=[2, 4, 4]).view(-1, weight.shape[0])


def _tubes(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Films in tubes of two frames."""
    return F.conv3d(x, weight, bias, stride=(2, 4, 4)).flatten(2).transpose(1, 2)


def _frames_of_sound(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv1d(x, weight, bias, stride=4).transpose(1, 2)


RULE = Recogniser(
    anchors=frozenset(_CONVOLUTIONS),
    recognise=recognise,
    op=patch_embedding,
    examples=(
        Example("images", _images, _made((2, 3, 24, 40), (11, 3, 8, 8)), fixed=(3, 8)),
        Example("images with valid padding, rows left over", _images_with_valid_padding, _made((2, 3, 30, 22), (11, 3, 7, 7)), fixed=(3, 7)),
        Example("rows of patches", _rows_of_patches, _made((6, 96), (11, 3, 2, 4, 4), bias=False), fixed=(96, 3, 2, 4)),
        Example("tubes", _tubes, _made((2, 3, 6, 12, 20), (11, 3, 2, 4, 4)), fixed=(3, 2, 4)),
        Example("frames of sound", _frames_of_sound, _made((2, 5, 23), (11, 5, 4)), fixed=(5, 4)),
    ),
)
